// Loss and gradient in one pass over the output, nothing of whose size is ever held.
//
// The work goes by cells, the outputs between four coarse pixels. The coarse rows are kept with the classes innermost,
// so a vector is a run of classes at one place, whatever the grid and the layout. Along a cell the logits are an
// arithmetic progression, so their exponentials are a geometric one: four exponentials a class for a block of up to 4x4
// outputs, then a multiplication each. The gradients of the corners are polynomials in the same ratios.
//
// Bound by arithmetic: about five multiply-adds a logit, and a quarter of an exponential.

#include "cpu/cells.h"
#include "cpu/ops.h"

namespace fcn_fast::FCN_FAST_ISA {
namespace {

// Coarse row i of an image, classes innermost, with a column before and after it: the edge again, or zeros.
template <class T, class A>
void load_row(const Map& logits, int64_t n, int64_t i, bool zero, int64_t padded, A* row) {
  constexpr int lanes = kLanes<A>;
  const int64_t h = logits.h, w = logits.w, classes = logits.c;
  const T* image = static_cast<const T*>(logits.data) + n * classes * h * w;
  if (logits.channels_last) {
    for (int64_t j = 0; j < w; ++j) {
      A* column = row + (j + 1) * padded;
      transform(column, classes, [&](const auto& at) { return at(image + (i * w + j) * classes); });
      for (int64_t c = classes; c < padded; ++c) column[c] = Cells<A>::kNever;
    }
  } else {
    for (int64_t c = 0; c < padded; c += lanes)
      for (int64_t j = 0; j < w; j += lanes) {
        Vec<A> block[lanes];
        for (int k = 0; k < lanes; ++k) {
          const T* from = image + ((c + k) * h + i) * w + j;
          block[k] = c + k >= classes ? splat(Cells<A>::kNever) : (w - j >= lanes ? load(from) : load(from, w - j));
        }
        transpose<A>(block);
        for (int k = 0; k < smaller(int64_t(lanes), w - j); ++k) store(row + (j + 1 + k) * padded + c, block[k]);
      }
  }
  for (int64_t c = 0; c < padded; ++c) {
    row[c] = zero && c < classes ? A(0) : row[padded + c];
    row[(w + 1) * padded + c] = zero && c < classes ? A(0) : row[w * padded + c];
  }
}

// A finished row of gradient back to the layout of logits. A border column's gradient belongs to the edge it repeats.
template <class A> void store_row(A* row, const Map& grad, int64_t n, int64_t i, bool zero, int64_t padded, A scale) {
  constexpr int lanes = kLanes<A>;
  const int64_t h = grad.h, w = grad.w, classes = grad.c;
  A* image = static_cast<A*>(grad.data) + n * classes * h * w;
  for (int64_t c = 0; c < padded && !zero; ++c) {
    row[padded + c] += row[c];
    row[w * padded + c] += row[(w + 1) * padded + c];
  }
  if (grad.channels_last) {
    for (int64_t j = 0; j < w; ++j) {
      const A* column = row + (j + 1) * padded;
      transform(image + (i * w + j) * classes, classes, [&](const auto& at) { return at(column) * scale; });
    }
    return;
  }
  for (int64_t c = 0; c < classes; c += lanes)
    for (int64_t j = 0; j < w; j += lanes) {
      Vec<A> block[lanes];
      for (int k = 0; k < lanes; ++k) block[k] = load(row + (smaller(j + k, w) + 1) * padded + c) * scale;
      transpose<A>(block);
      for (int k = 0; k < smaller(int64_t(lanes), classes - c); ++k) {
        A* to = image + ((c + k) * h + i) * w + j;
        if (w - j >= lanes) store(to, block[k]);
        else store(to, block[k], w - j);
      }
    }
}

// The labels' part: total weight, and the first label out of range.
template <class A> Partial count_labels(const LossRule<A>& rule, int64_t pixels) {
  constexpr int64_t tile = 4096;
  const int64_t count = ceil_div(pixels, tile);
  const Buffer<Partial> partials(count);
  parallel(count, [&](int64_t begin, int64_t end) {
    const Buffer<int32_t> label(tile);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit * tile, size = smaller(tile, pixels - first);
      rule.labels(first, size, label);
      partials[unit] = rule.count(first, size, label);
    }
  });
  return total_of(partials, count);
}

// The bands of cell rows that are worked on at once. Band t covers the runs from the padded coarse rows [t * rows,
// (t + 1) * rows). It shares its first row and the one after its last with its neighbours; their parts of the gradient
// are kept apart and added at the end.
struct Bands {
  int64_t rows, per_image, count;
  Bands(int64_t n, int64_t h) {
    rows = smaller(larger(ceil_div((h + 1) * n, 32), int64_t(2)), int64_t(16));
    per_image = ceil_div(h + 1, rows);
    count = n * per_image;
  }
};

template <class T> class Band {
 public:
  using A = arithmetic_t<T>;

  struct Task {
    const Map &logits, &grad;
    const Grid& grid;
    const Runs<A>&vertical, &horizontal;
    const LossRule<A>& rule;
    const Bands& bands;
    A scale;    // of the gradient, once it is summed
    A* losses;  // one a pixel, or null
    A* shared;  // two coarse rows a band: what it has of its first row, and of the one after its last
  };

  explicit Band(const Task& task)
      : task_(task), cells_(task.rule, task.logits.c, task.vertical.step, task.horizontal.step, task.grad.data != nullptr),
        row_((task.logits.w + 2) * cells_.padded), width_(task.grid.x.out), coarse_(2 * row_), zeros_(row_),
        grads_(task.grad.data ? (task.bands.rows + 1) * row_ : 0), row_label_(width_), row_own_(width_), row_even_(width_),
        label_(task.horizontal.count * kBlock), own_(task.horizontal.count * kBlock), even_(task.horizontal.count * kBlock),
        sum_(task.horizontal.count * kBlock), logit_(task.horizontal.count * kBlock), smoothed_(task.horizontal.count * kBlock) {
    for (int64_t i = 0; i < row_; ++i) zeros_[i] = i % cells_.padded < task.logits.c ? A(0) : Cells<A>::kNever;
  }

  Partial run(int64_t unit) {
    const Task& t = task_;
    const int64_t n = unit / t.bands.per_image, first = unit % t.bands.per_image * t.bands.rows;
    const int64_t last = smaller(first + t.bands.rows, t.logits.h + 1);  // padded coarse rows, both included
    if (t.grad.data) std::memset(grads_, 0, (last - first + 1) * row_ * sizeof(A));
    Partial partial;
    for (int64_t r = 0; r < t.vertical.count; ++r) {
      // Outputs after a zero border join the last cell.
      const int64_t cell = smaller(int64_t(t.vertical.runs[r].low), t.logits.h);
      if (cell >= first && cell < first + t.bands.rows) rows(n, r, first, partial);
    }
    if (!t.grad.data) return partial;
    fold_border(first, last);
    for (int64_t i = larger(first, int64_t(1)); i <= smaller(last, t.logits.h); ++i) {
      A* row = grads_ + (i - first) * row_;
      if (i == first || i == first + t.bands.rows) std::memcpy(t.shared + (2 * unit + (i != first)) * row_, row, row_ * sizeof(A));
      else store_row(row, t.grad, n, i - 1, t.grid.x.zero, cells_.padded, t.scale);
    }
    return partial;
  }

 private:
  // A border row's gradient belongs to the edge it repeats; a zero's to nobody.
  void fold_border(int64_t first, int64_t last) {
    const auto fold = [&](int64_t from, int64_t to) {
      A *source = grads_ + (from - first) * row_, *target = grads_ + (to - first) * row_;
      for (int64_t i = 0; i < row_; i += kLanes<A>) store(target + i, load(target + i) + load(source + i));
    };
    if (task_.grid.y.zero) return;
    if (first == 0) fold(0, 1);
    if (last == task_.logits.h + 1) fold(last, last - 1);
  }

  // Padded coarse row i.
  const A* coarse_row(int64_t n, int64_t i) {
    const int64_t h = task_.logits.h, inside = smaller(larger(i - 1, int64_t(0)), h - 1), slot = i & 1;
    if (task_.grid.y.zero && inside != i - 1) return zeros_;
    A* row = coarse_ + slot * row_;
    if (loaded_[slot] != n * h + inside) load_row<T>(task_.logits, n, inside, task_.grid.x.zero, cells_.padded, row);
    loaded_[slot] = n * h + inside;
    return row;
  }

  // The output rows of one vertical run.
  void rows(int64_t n, int64_t r, int64_t band, Partial& partial) {
    const Task& t = task_;
    const Run& vertical = t.vertical.runs[r];
    const int64_t padded = cells_.padded, at = (n * t.grid.y.out + vertical.first) * width_;
    const A *top = coarse_row(n, vertical.low), *bottom = coarse_row(n, vertical.high);
    A *top_grad = nullptr, *bottom_grad = nullptr;
    if (t.grad.data) {
      top_grad = grads_ + (vertical.low - band) * row_;
      bottom_grad = grads_ + (vertical.high - band) * row_;
    }
    read_targets(at, vertical.count);
    int32_t cell = -1;
    A shift = 0;
    for (int64_t first = 0; first < t.horizontal.count; first += kAtOnce) {
      Block<A> blocks[kAtOnce];
      const int count = int(smaller(int64_t(kAtOnce), t.horizontal.count - first));
      for (int i = 0; i < count; ++i) {
        const Run& run = t.horizontal.runs[first + i];
        const int64_t left = run.low * padded, right = run.high * padded, k = (first + i) * kBlock;
        const Corners<const A*> x{top + left, top + right, bottom + left, bottom + right};
        // Before a zero border two cells have the same low neighbour, and after it two the same high one.
        if (run.low + run.high != cell) shift = cells_.shift(x);
        cell = run.low + run.high;
        const Pixels<A> pixels{vertical.count, run.count, t.horizontal.low_weight + k, t.horizontal.high_weight + k,
                               t.vertical.low_weight + r * kBlock, t.vertical.high_weight + r * kBlock, label_ + k, own_ + k,
                               even_ + k, sum_ + k, logit_ + k, smoothed_ + k};
        blocks[i] = {x, {top_grad + left, top_grad + right, bottom_grad + left, bottom_grad + right}, shift, pixels};
      }
      cells_.run(blocks, count);
    }
    add_losses(partial);
    for (int64_t i = 0; i < t.horizontal.count && t.losses; ++i) {
      const Run& run = t.horizontal.runs[i];
      for (int y = 0; y < vertical.count; ++y)
        std::memcpy(t.losses + at + y * width_ + run.first, sum_ + i * kBlock + y * kColumns, run.count * sizeof(A));
    }
  }

  // The targets of some rows, from their order in memory to the blocks'.
  void read_targets(int64_t at, int rows) {
    const Task& t = task_;
    for (int64_t i = 0; i < t.horizontal.count * kBlock; ++i) label_[i] = kIgnored;
    std::memset(own_, 0, t.horizontal.count * kBlock * sizeof(A));
    std::memset(even_, 0, t.horizontal.count * kBlock * sizeof(A));
    for (int y = 0; y < rows; ++y) {
      t.rule.read(at + y * width_, width_, row_label_, row_own_, row_even_);
      for (int64_t i = 0; i < t.horizontal.count; ++i) {
        const int64_t x = t.horizontal.runs[i].first, count = t.horizontal.runs[i].count, to = i * kBlock + y * kColumns;
        copy_run(row_label_ + x, count, label_ + to);
        copy_run(row_own_ + x, count, own_ + to);
        if (t.rule.smooth != 0) copy_run(row_even_ + x, count, even_ + to);
      }
    }
  }
  template <class V> FCN_FAST_INLINE static void copy_run(const V* from, int64_t count, V* to) {
    if (count == kColumns) __builtin_memcpy(to, from, kColumns * sizeof(V));
    else for (int64_t k = 0; k < count; ++k) to[k] = from[k];
  }

  // The losses of the blocks, which take the place of their sums. Few are added up before they go into the double.
  void add_losses(Partial& partial) {
    const LossRule<A>& rule = task_.rule;
    constexpr int64_t part = 16 * kLanes<A>;
    const int64_t count = task_.horizontal.count * kBlock;
    for (int64_t first = 0; first < count; first += part) {
      Vec<A> total{};
      for (int64_t i = first; i < smaller(first + part, count); i += kLanes<A>) {
        const Vec<A> own = load<A>(own_ + i), log_sum = log(load<A>(sum_ + i));
        Vec<A> loss = own == 0 ? Vec<A>{} : own * (log_sum - load<A>(logit_ + i));
        if (rule.smooth != 0) loss += load<A>(even_ + i) * (log_sum * rule.class_sum - load<A>(smoothed_ + i));
        store(sum_ + i, loss);
        total += loss;
      }
      partial.loss += sum_of<A>(total);
    }
  }

  const Task& task_;
  Cells<A> cells_;
  const int64_t row_, width_;
  Buffer<A> coarse_, zeros_, grads_;
  Buffer<int32_t> row_label_;
  Buffer<A> row_own_, row_even_;
  Buffer<int32_t> label_;
  Buffer<A> own_, even_, sum_, logit_, smoothed_;
  int64_t loaded_[2] = {-1, -1};
};

template <class T> BadLabel run(const Map& logits, const Targets& targets, const Grid& grid, void* loss, void* saved) {
  using A = arithmetic_t<T>;
  const int64_t pixels = grid.y.out * grid.x.out;
  const LossRule<A> rule(targets, logits.c);
  const Partial found = count_labels(rule, logits.n * pixels);
  const double scale = scale_of(targets.reduction, found.weight, logits.n, pixels);
  const bool none = targets.reduction == kNone;
  if (!none && scale == 0) {
    *static_cast<A*>(loss) = 0;
    if (saved) std::memset(saved, 0, logits.n * logits.c * logits.h * logits.w * sizeof(A));
    return {found.bad};
  }
  const Runs<A> vertical(grid.y, true), horizontal(grid.x, false);
  const Bands bands(logits.n, logits.h);
  const int64_t padded = round_up(logits.c, kLanes<A>), row = (logits.w + 2) * padded;
  const Buffer<Partial> partials(bands.count);
  const Buffer<A> shared(saved ? bands.count * 2 * row : 0);
  Map grad = logits;
  grad.data = saved;
  const typename Band<T>::Task task{logits, grad, grid, vertical, horizontal, rule, bands, A(scale), none ? static_cast<A*>(loss) : nullptr, shared};
  parallel(bands.count, [&](int64_t begin, int64_t end) {
    Band<T> band(task);
    for (int64_t unit = begin; unit < end; ++unit) partials[unit] = band.run(unit);
  });
  if (saved)
    parallel(bands.count, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t t = unit % bands.per_image;
        if (t == 0) continue;
        A *above = shared + (2 * unit - 1) * row, *below = shared + 2 * unit * row;
        for (int64_t i = 0; i < row; i += kLanes<A>) store(above + i, load(above + i) + load(below + i));
        store_row(above, grad, unit / bands.per_image, t * bands.rows - 1, grid.x.zero, padded, A(scale));
      }
    });
  if (!none) *static_cast<A*>(loss) = A(total_of(partials, bands.count).loss * scale);
  return {found.bad};
}

}  // namespace

BadLabel upsample_softmax_loss(const Map& logits, const Targets& targets, const Grid& grid, void* loss, void* saved) {
  BadLabel bad;
  dispatch(logits.type, [&](auto t) { bad = run<decltype(t)>(logits, targets, grid, loss, saved); });
  return bad;
}

}  // namespace fcn_fast::FCN_FAST_ISA
