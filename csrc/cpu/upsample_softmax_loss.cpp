// Loss and gradient in one pass over the output, nothing of whose size is ever held.
//
// A tile is a band of cell rows: the outputs between neighbouring coarse rows. Its coarse rows are kept with the classes
// innermost, so a vector is a run of classes at one place, whatever the grid and the layout. An output row is first
// interpolated vertically; then, cell by cell, its pixels. Along a cell the logits are an arithmetic progression, so
// their exponentials are a geometric one: two exponentials a class and cell row, then one multiplication a pixel
// (geometric below). The gradients of the two corners are polynomials in the same ratio.
//
// Bound by arithmetic: about four multiply-adds a logit, and 2 / scale exponentials.

#include "cpu/labels.h"
#include "cpu/ops.h"

namespace fcn_fast::FCN_FAST_ISA {
namespace {

constexpr int kRun = 16;  // the most outputs of a cell row done at once; keeps the powers of the ratio accurate

// A run of outputs between two columns of a padded coarse row, whose column 0 lies left of the map.
struct Run {
  int32_t left, right, first, count;
};

template <class A> struct Runs {
  Buffer<Run> runs;
  Buffer<A> weight;  // of the right column, for every output
  int64_t count = 0;
  A step;            // from one output's weight to the next

  explicit Runs(const Axis& axis) : runs(axis.out), weight(axis.out), step(A(axis.step) / A(axis.unit)) {
    const Taps<A> taps(axis);
    for (int64_t x = 0; x < axis.out; ++x) {
      int64_t remainder;
      axis.cell(x, remainder);
      weight[x] = A(remainder) / A(axis.unit);
      const int32_t cell = taps.cell[x];
      const bool grows = x > 0 && cell == taps.cell[x - 1] && runs[count - 1].count < kRun;
      if (grows) ++runs[count - 1].count;
      else runs[count++] = {int32_t(larger(cell + 1, 0)), int32_t(smaller(cell + 2, int32_t(axis.in) + 1)), int32_t(x), 1};
    }
  }
};

// What the pixels of a run add to the gradient: (left, right) of whole * softmax, own at the label, even * class_weight.
template <class A> struct Pixels {
  A left[kRun], right[kRun];        // weights of the two columns
  int32_t label[kRun];
  A whole[kRun], own[kRun], even[kRun];
  A u[kRun], v[kRun];               // whole * left / sum, whole * right / sum
};

template <class A> class Loss {
 public:
  static constexpr A kNever = sizeof(A) == 4 ? A(-8e37) : A(-8e300);  // a padding class: its exponential is 0

  Loss(const LossRule<A>& rule, int64_t classes, bool with_grad)
      : rule_(rule), classes_(classes), padded(round_up(classes, kLanes<A>)), with_grad_(with_grad), class_weight_(padded),
        first_(padded), ratio_(padded) {
    for (int64_t c = 0; c < padded; ++c) class_weight_[c] = c < classes ? rule.class_weight()[c] : A(0);
  }

  // Loss of the pixels of a run between columns a and b; adds to the columns of the gradient. losses: one a pixel.
  void run(const A* a, const A* b, A step, int count, Pixels<A>& pixels, A* grad_a, A* grad_b, A* losses) {
    bool counts = false;
    for (int k = 0; k < count; ++k) counts |= pixels.label[k] != kIgnored;
    for (int k = 0; k < count; ++k) losses[k] = 0;
    if (!counts) return;
    Vec<A> largest = load(a);
    Ints<A> gentle = largest == largest;
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      const Vec<A> left = load(a + c), right = load(b + c);
      largest = vmax(largest, vmax(left, right));
      gentle &= vabs(right - left) <= 20;
    }
    // Steep cells would underflow at one end and come back wrong at the other; NaN and infinity land here too.
    if (any<A>(~gentle)) return steep(a, b, count, pixels, grad_a, grad_b, losses);
    const A shift = max_of<A>(largest);
    if (count == 1) geometric<1>(a, b, step, count, shift, pixels, grad_a, grad_b, losses);
    else if (count == 2) geometric<2>(a, b, step, count, shift, pixels, grad_a, grad_b, losses);
    else if (count <= 4) geometric<4>(a, b, step, count, shift, pixels, grad_a, grad_b, losses);
    else if (count <= 8) geometric<8>(a, b, step, count, shift, pixels, grad_a, grad_b, losses);
    else geometric<16>(a, b, step, count, shift, pixels, grad_a, grad_b, losses);
  }

 private:
  // K >= count pixels at constant steps; those past count are computed and left.
  template <int K>
  void geometric(const A* a, const A* b, A step, int count, A shift, Pixels<A>& pixels, A* grad_a, A* grad_b, A* losses) {
    Vec<A> sums[K] = {};
    Vec<A> smooth_a{}, smooth_step{};
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      const Vec<A> left = load(a + c), rise = load(b + c) - left;
      Vec<A> term = exp(mul_add(splat(pixels.right[0]), rise, left - shift));
      store(first_ + c, term);
      sums[0] += term;
      if constexpr (K > 1) {
        const Vec<A> ratio = exp(rise * step);
        store(ratio_ + c, ratio);
        for (int k = 1; k < K; ++k) {
          term *= ratio;
          sums[k] += term;
        }
      }
      if (rule_.smooth != 0) {
        smooth_a += (left - shift) * load<A>(class_weight_ + c);
        smooth_step += rise * load<A>(class_weight_ + c);
      }
    }
    alignas(64) A sum[kRun + kLanes<A>], log_sum[kRun + kLanes<A>];
    for (int k = 0; k < K; ++k) sum[k] = sum_of<A>(sums[k]);
    for (int k = K; k % kLanes<A>; ++k) sum[k] = 1;
    for (int k = 0; k < K; k += kLanes<A>) store(log_sum + k, log(load(sum + k)));
    const A smooth_left = rule_.smooth != 0 ? sum_of<A>(smooth_a) : 0, smooth_rise = rule_.smooth != 0 ? sum_of<A>(smooth_step) : 0;
    for (int k = 0; k < count; ++k) {
      const int32_t c = pixels.label[k];
      if (c < 0) {
        losses[k] = c == kBad ? A(NAN) : A(0);
        continue;
      }
      const A logit = mul_add(pixels.right[k], b[c] - a[c], a[c] - shift);
      losses[k] = pixels.own[k] * (log_sum[k] - logit);
      if (rule_.smooth != 0)
        losses[k] += pixels.even[k] * (rule_.class_sum * log_sum[k] - mul_add(pixels.right[k], smooth_rise, smooth_left));
    }
    if (!with_grad_) return;
    for (int k = 0; k < K; ++k) {
      const A share = k < count ? pixels.whole[k] / sum[k] : A(0);
      pixels.u[k] = k < count && pixels.left[k] != 0 ? share * pixels.left[k] : A(0);
      pixels.v[k] = k < count && pixels.right[k] != 0 ? share * pixels.right[k] : A(0);
    }
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      Vec<A> left = splat(pixels.u[K - 1]), right = splat(pixels.v[K - 1]);
      if constexpr (K > 1) {
        const Vec<A> ratio = load<A>(ratio_ + c);
        for (int k = K - 2; k >= 0; --k) {
          left = mul_add(left, ratio, splat(pixels.u[k]));
          right = mul_add(right, ratio, splat(pixels.v[k]));
        }
      }
      const Vec<A> first = load<A>(first_ + c);
      store(grad_a + c, mul_add(left, first, load(grad_a + c)));
      store(grad_b + c, mul_add(right, first, load(grad_b + c)));
    }
    subtract_targets(count, pixels, grad_a, grad_b);
  }

  // The same a pixel at a time, with its own largest logit and no use made of its neighbours.
  void steep(const A* a, const A* b, int count, Pixels<A>& pixels, A* grad_a, A* grad_b, A* losses) {
    for (int k = 0; k < count; ++k) {
      if (pixels.label[k] == kIgnored) continue;
      const A wa = pixels.left[k], wb = pixels.right[k];
      const auto logit = [&](int64_t c) { return weighted(wa, a[c]) + weighted(wb, b[c]); };
      A largest = logit(0);
      for (int64_t c = 0; c < classes_; ++c) {
        first_[c] = logit(c);
        if (!(first_[c] <= largest)) largest = first_[c];
      }
      for (int64_t c = classes_; c < padded; ++c) first_[c] = kNever;
      Vec<A> sums{}, smooth{};
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        const Vec<A> x = load<A>(first_ + c) - largest, weight = load<A>(class_weight_ + c);
        if (rule_.smooth != 0) smooth += weight == 0 ? Vec<A>{} : x * weight;
        const Vec<A> term = exp(x);
        store(first_ + c, term);
        sums += term;
      }
      const A sum = sum_of<A>(sums), log_sum = log(splat(sum))[0];
      const int32_t c = pixels.label[k];
      if (c >= 0) {
        losses[k] = pixels.own[k] * (log_sum - (logit(c) - largest));
        if (rule_.smooth != 0) losses[k] += pixels.even[k] * (rule_.class_sum * log_sum - sum_of<A>(smooth));
      } else {
        losses[k] = A(NAN);
      }
      if (!with_grad_) continue;
      if (wa != 0) add_scaled(grad_a, pixels.whole[k] / sum * wa);
      if (wb != 0) add_scaled(grad_b, pixels.whole[k] / sum * wb);
    }
    if (with_grad_) subtract_targets(count, pixels, grad_a, grad_b);
  }
  void add_scaled(A* grad, A scale) {
    for (int64_t c = 0; c < padded; c += kLanes<A>) store(grad + c, mul_add(load<A>(first_ + c), splat(scale), load(grad + c)));
  }

  void subtract_targets(int count, const Pixels<A>& pixels, A* grad_a, A* grad_b) {
    A even_a = 0, even_b = 0;
    for (int k = 0; k < count; ++k) {
      if (pixels.label[k] < 0) continue;
      grad_a[pixels.label[k]] -= pixels.own[k] * pixels.left[k];
      grad_b[pixels.label[k]] -= pixels.own[k] * pixels.right[k];
      even_a += pixels.even[k] * pixels.left[k];
      even_b += pixels.even[k] * pixels.right[k];
    }
    if (rule_.smooth == 0) return;
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      const Vec<A> weight = load<A>(class_weight_ + c);
      store(grad_a + c, load(grad_a + c) - weight * even_a);
      store(grad_b + c, load(grad_b + c) - weight * even_b);
    }
  }

  const LossRule<A>& rule_;
  const int64_t classes_;

 public:
  const int64_t padded;

 private:
  const bool with_grad_;
  Buffer<A> class_weight_, first_, ratio_;
};

// Coarse row i of an image, classes innermost, with a column beside either end: the edge again, or zeros.
template <class T, class A>
void load_row(const Map& logits, int64_t n, int64_t i, bool zero, int64_t padded, A* row) {
  const int64_t h = logits.h, w = logits.w, classes = logits.c;
  const T* image = static_cast<const T*>(logits.data) + n * classes * h * w;
  if (logits.channels_last) {
    for (int64_t j = 0; j < w; ++j)
      transform(row + (j + 1) * padded, classes, [&](const auto& at) { return at(image + (i * w + j) * classes); });
  } else {
    for (int64_t c = 0; c < classes; ++c)
      for (int64_t j = 0; j < w; ++j) row[(j + 1) * padded + c] = to_arithmetic(image[(c * h + i) * w + j]);
  }
  for (int64_t j = 1; j <= w; ++j)
    for (int64_t c = classes; c < padded; ++c) row[j * padded + c] = Loss<A>::kNever;
  for (int64_t c = 0; c < padded; ++c) {
    A *left = row + c, *right = row + (w + 1) * padded + c;
    *left = zero && c < classes ? A(0) : row[padded + c];
    *right = zero && c < classes ? A(0) : row[w * padded + c];
  }
}

// A finished row of gradient back to the layout of logits.
template <class A> void store_row(const A* row, const Map& grad, int64_t n, int64_t i, int64_t padded) {
  const int64_t h = grad.h, w = grad.w, classes = grad.c;
  A* image = static_cast<A*>(grad.data) + n * classes * h * w;
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t j = 0; j < w; ++j)
      image[grad.channels_last ? (i * w + j) * classes + c : (c * h + i) * w + j] = row[(j + 1) * padded + c];
}

// A border column's gradient belongs to the edge it repeats; a zero's to nobody.
template <class A> void fold_borders(A* row, int64_t w, bool zero, int64_t padded) {
  for (int64_t c = 0; c < padded && !zero; ++c) {
    row[padded + c] += row[c];
    row[w * padded + c] += row[(w + 1) * padded + c];
  }
}

// The labels' part: total weight, and the first label out of range.
template <class A> Partial count_labels(const LossRule<A>& rule, int64_t n, int64_t pixels) {
  constexpr int64_t tile = 4096;
  const int64_t count = ceil_div(n * pixels, tile);
  const Buffer<Partial> partials(count);
  parallel(count, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      Partial partial;
      for (int64_t i = unit * tile; i < smaller((unit + 1) * tile, n * pixels); ++i) {
        const int32_t label = rule.label(i);
        if (label >= 0) partial.weight += double(rule.class_weight()[label]) * rule.pixel_weight(i);
        else if (label == kBad) partial.bad = smaller(partial.bad, i);
      }
      partials[unit] = partial;
    }
  });
  return total_of(partials, count);
}

template <class T> BadLabel run(const Map& logits, const Targets& targets, const Grid& grid, void* loss, void* saved) {
  using A = arithmetic_t<T>;
  const int64_t h = logits.h, w = logits.w, height = grid.y.out, width = grid.x.out;
  const LossRule<A> rule(targets, logits.c);
  const Partial found = count_labels(rule, logits.n, height * width);
  const double scale = scale_of(targets.reduction, found.weight, logits.n, height * width);
  const A grad_scale = A(scale);
  const Taps<A> vertical(grid.y);
  const Runs<A> runs(grid.x);

  // Band t of an image covers the cell rows [-1 + t * band, -1 + (t + 1) * band). It shares its first and its last
  // coarse row with its neighbours; their parts are kept apart and added at the end.
  const int64_t band = smaller(larger(ceil_div((h + 1) * logits.n, 32), int64_t(2)), int64_t(16));
  const int64_t bands = ceil_div(h + 1, band), count = logits.n * bands;
  const int64_t padded = round_up(logits.c, kLanes<A>), row = (w + 2) * padded;
  const Buffer<Partial> partials(count);
  const Buffer<A> shared(saved ? count * 2 * row : 0);
  Map grad = logits;
  grad.data = saved;

  parallel(count, [&](int64_t begin, int64_t end) {
    Loss<A> work(rule, logits.c, saved != nullptr);
    const Buffer<A> coarse(2 * row), logit_row(row), grad_row(row), grads(saved ? (band + 1) * row : 0);
    int64_t loaded[2] = {-1, -1};
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / bands, t = unit % bands, low_cell = t * band - 1;
      const int64_t top = larger(low_cell, int64_t(0)), bottom = smaller(low_cell + band, h - 1);
      if (saved) std::memset(grads, 0, (bottom - top + 1) * row * sizeof(A));
      Partial partial;
      for (int64_t y = 0; y < height; ++y) {
        const int64_t cell = smaller(larger(int64_t(vertical.cell[y]), int64_t(-1)), h - 1);
        if (cell < low_cell) continue;
        if (cell >= low_cell + band) break;
        const int64_t taps[2] = {vertical.low[y], vertical.high[y]};
        const A weights[2] = {vertical.low_weight[y], vertical.high_weight[y]};
        const A* rows[2];
        for (int k = 0; k < 2; ++k) {
          const int64_t key = n * h + taps[k];
          const int slot = key & 1;  // neighbours differ, so the pair never evicts itself
          if (loaded[slot] != key) load_row<T>(logits, n, taps[k], grid.x.zero, padded, coarse + slot * row);
          loaded[slot] = key;
          rows[k] = coarse + slot * row;
        }
        if (weights[0] + weights[1] == 0) {
          for (int64_t i = 0; i < row; ++i) logit_row[i] = i % padded < logits.c ? A(0) : Loss<A>::kNever;
        } else if (weights[0] == 0 || weights[1] == 0) {
          transform(static_cast<A*>(logit_row), row, [&](const auto& at) { return at(rows[0]) * (weights[0] + weights[1]); });
        } else {
          transform(static_cast<A*>(logit_row), row, [&](const auto& at) {
            return mul_add(splat(weights[1]), at(rows[1]), at(rows[0]) * weights[0]);
          });
        }
        if (saved) std::memset(grad_row, 0, row * sizeof(A));
        for (int64_t r = 0; r < runs.count; ++r) {
          const Run& run = runs.runs[r];
          const int64_t at = (n * height + y) * width + run.first;
          Pixels<A> pixels;
          A losses[kRun];
          for (int k = 0; k < run.count; ++k) {
            const int32_t label = pixels.label[k] = scale == 0 ? kIgnored : rule.label(at + k);
            pixels.right[k] = runs.weight[run.first + k];
            pixels.left[k] = 1 - pixels.right[k];
            const A pixel = label >= 0 ? rule.pixel_weight(at + k) * grad_scale : A(0);
            pixels.own[k] = label >= 0 ? pixel * rule.hard * rule.class_weight()[label] : A(0);
            pixels.even[k] = pixel * rule.smooth;
            pixels.whole[k] = label == kBad ? A(NAN) : pixels.own[k] + pixels.even[k] * rule.class_sum;
          }
          work.run(logit_row + run.left * padded, logit_row + run.right * padded, runs.step, run.count, pixels,
                   grad_row + run.left * padded, grad_row + run.right * padded, losses);
          if (targets.reduction == kNone) std::memcpy(static_cast<A*>(loss) + at, losses, run.count * sizeof(A));
          else
            for (int k = 0; k < run.count; ++k) partial.loss += losses[k];
        }
        if (saved)
          for (int k = 0; k < 2; ++k)
            if (weights[k] != 0) {
              A* sum = grads + (taps[k] - top) * row;
              for (int64_t i = 0; i < row; i += kLanes<A>)
                store(sum + i, mul_add(splat(weights[k]), load<A>(grad_row + i), load(sum + i)));
            }
      }
      partials[unit] = partial;
      if (!saved) continue;
      for (int64_t i = top; i <= bottom; ++i) {
        A* sum = grads + (i - top) * row;
        fold_borders(sum, w, grid.x.zero, padded);
        if (i == low_cell) std::memcpy(shared + (2 * unit + 0) * row, sum, row * sizeof(A));
        else if (i == low_cell + band) std::memcpy(shared + (2 * unit + 1) * row, sum, row * sizeof(A));
        else store_row(sum, grad, n, i, padded);
      }
    }
  });
  if (saved)
    parallel(count, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t t = unit % bands;
        if (t == 0) continue;
        A *above = shared + (2 * unit - 1) * row, *below = shared + 2 * unit * row;
        for (int64_t i = 0; i < row; ++i) above[i] += below[i];
        store_row(above, grad, unit / bands, t * band - 1, padded);
      }
    });
  if (targets.reduction != kNone) *static_cast<A*>(loss) = scale == 0 ? A(0) : A(total_of(partials, count).loss);
  return {found.bad};
}

}  // namespace

BadLabel upsample_softmax_loss(const Map& logits, const Targets& targets, const Grid& grid, void* loss, void* saved) {
  BadLabel bad;
  dispatch(logits.type, [&](auto t) { bad = run<decltype(t)>(logits, targets, grid, loss, saved); });
  return bad;
}

}  // namespace fcn_fast::FCN_FAST_ISA
