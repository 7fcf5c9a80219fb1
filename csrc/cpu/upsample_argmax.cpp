// Interpolation is a convex combination, so inside a cell (the outputs between four coarse pixels) a class can only win
// where its largest corner reaches the largest of all classes' smallest corners. On smooth maps that leaves one class in
// most cells, which are filled; in the others the classes left compete pixel by pixel, in the arithmetic of
// bilinear_upsample. Bound by reading the coarse map and, where scores are rough, by two multiply-adds a class and pixel.

#include "cpu/ops.h"
#include "cpu/simd.h"

namespace fcn_fast::FCN_FAST_ISA {
namespace {

// Coarse row i of an image, one padded row of w + 2 numbers a class: the edge again on either side, or zeros.
template <class T, class A> void load_row(const Map& logits, int64_t n, int64_t i, bool zero, int64_t stride, A* row) {
  const int64_t h = logits.h, w = logits.w, classes = logits.c;
  const T* image = static_cast<const T*>(logits.data) + n * classes * h * w;
  for (int64_t c = 0; c < classes; ++c) {
    A* padded = row + c * stride;
    if (logits.channels_last) {
      for (int64_t j = 0; j < w; ++j) padded[j + 1] = to_arithmetic(image[(i * w + j) * classes + c]);
    } else {
      transform(padded + 1, w, [&](const auto& at) { return at(image + (c * h + i) * w); });
    }
    padded[0] = zero ? A(0) : padded[1];
    for (int64_t j = w + 1; j < stride; ++j) padded[j] = zero ? A(0) : padded[w];
  }
}

// Which classes a cell leaves in the race, for a whole row of cells.
template <class A> struct Survivors {
  Buffer<A> bar;          // a class whose largest corner is below this can't win
  Buffer<int32_t> count;  // how many reach it; 0: not to be pruned, some corner is not finite
  Buffer<int32_t> last;   // the last one that does
  explicit Survivors(int64_t cells) : bar(cells), count(cells), last(cells) {}
};

template <class A>
void prune(const A* above, const A* below, int64_t classes, int64_t stride, int64_t cells, Survivors<A>& out) {
  constexpr int lanes = kLanes<A>;
  const auto corners = [&](int64_t c, int64_t j, Vec<A>& least, Vec<A>& most) {
    const A *a = above + c * stride + j, *b = below + c * stride + j;
    const Vec<A> p = load(a), q = load(a + 1), r = load(b), s = load(b + 1);
    least = vmin(vmin(p, q), vmin(r, s));
    most = vmax(vmax(p, q), vmax(r, s));
    return p + q + r + s;
  };
  for (int64_t j = 0; j < cells; j += lanes) {
    Vec<A> bar = splat(-A(INFINITY)), size{}, finite{}, least, most;
    for (int64_t c = 0; c < classes; ++c) {
      finite += corners(c, j, least, most) * A(0);
      bar = vmax(bar, least);
      size = vmax(size, vmax(vabs(least), vabs(most)));
    }
    // Rounding in bilinear_upsample moves a value by less than 4 units in the last place of the largest corner.
    bar = bar - size * (16 * (sizeof(A) == 4 ? A(0x1p-24) : A(0x1p-53)));
    Ints<A> count{}, last{};
    for (int64_t c = 0; c < classes; ++c) {
      corners(c, j, least, most);
      const Ints<A> stays = most >= bar;
      count -= stays;
      last = stays ? Ints<A>{} + Int<A>(c) : last;
    }
    count = finite == 0 ? count : Ints<A>{};
    store(out.bar + j, bar);
    for (int k = 0; k < lanes; ++k) {
      out.count[j + k] = int32_t(count[k]);
      out.last[j + k] = int32_t(last[k]);
    }
  }
}

// The outputs of one cell: columns [left, right), rows [top, bottom).
struct Window {
  int64_t top, bottom, left, right;
};

template <class A, class L> class Cells {
 public:
  Cells(const Grid& grid, const Taps<A>& vertical, const Taps<A>& horizontal, int64_t classes, int64_t stride)
      : width_(grid.x.out), vertical_(vertical), horizontal_(horizontal), classes_(classes), stride_(stride) {}

  void fill(L* labels, const Window& window, int32_t label) const {
    for (int64_t y = window.top; y < window.bottom; ++y) {
      L* row = labels + y * width_;
      for (int64_t x = window.left; x < window.right; ++x) row[x] = L(label);
    }
  }

  // The classes that reach the bar compete; above and below point to the cell's left corners of class 0.
  void compete(L* labels, const Window& window, const A* above, const A* below, A bar) const {
    constexpr int lanes = kLanes<A>;
    constexpr int rows = 16;
    for (int64_t x = window.left; x < window.right; x += lanes) {
      const Vec<A> wa = load(horizontal_.low_weight + x), wb = load(horizontal_.high_weight + x);
      for (int64_t y0 = window.top; y0 < window.bottom; y0 += rows) {
        const int count = int(smaller(int64_t(rows), window.bottom - y0));
        Vec<A> best[rows];
        Ints<A> winner[rows];
        for (int k = 0; k < count; ++k) {
          best[k] = splat(-A(INFINITY));
          winner[k] = Ints<A>{};
        }
        for (int64_t c = 0; c < classes_; ++c) {
          const A *a = above + c * stride_, *b = below + c * stride_;
          if (larger(larger(a[0], a[1]), larger(b[0], b[1])) < bar) continue;
          const Vec<A> upper = wa * a[0] + wb * a[1], lower = wa * b[0] + wb * b[1];
          for (int k = 0; k < count; ++k) {
            const Vec<A> value = mix(y0 + k, upper, lower);
            const Ints<A> wins = value > best[k];
            best[k] = wins ? value : best[k];
            winner[k] = wins ? Ints<A>{} + Int<A>(c) : winner[k];
          }
        }
        const int64_t size = smaller(int64_t(lanes), window.right - x);
        for (int k = 0; k < count; ++k)
          for (int64_t i = 0; i < size; ++i) labels[(y0 + k) * width_ + x + i] = L(winner[k][i]);
      }
    }
  }

  // Every class at every pixel, with NaN and infinity as bilinear_upsample and torch.argmax have them.
  void scan(L* labels, const Window& window, const A* above, const A* below) const {
    for (int64_t y = window.top; y < window.bottom; ++y)
      for (int64_t x = window.left; x < window.right; ++x) {
        const A wa = horizontal_.low_weight[x], wb = horizontal_.high_weight[x];
        A best = 0;
        int64_t winner = 0;
        for (int64_t c = 0; c < classes_; ++c) {
          const A *a = above + c * stride_, *b = below + c * stride_;
          const A upper = weighted(wa, a[0]) + weighted(wb, a[1]), lower = weighted(wa, b[0]) + weighted(wb, b[1]);
          const A value = mix(y, upper, lower);
          if (c == 0 || value > best || (value != value && best == best)) {
            best = value;
            winner = c;
          }
        }
        labels[y * width_ + x] = L(winner);
      }
  }

 private:
  template <class V> FCN_FAST_INLINE V mix(int64_t y, V upper, V lower) const {
    const A low = vertical_.low_weight[y], high = vertical_.high_weight[y];
    if (low != 0 && high != 0) return mul_add(high - V{}, lower, upper * low);
    return low == 0 && high == 0 ? V{} : (low != 0 ? upper * low : lower * high);
  }

  const int64_t width_;
  const Taps<A>&vertical_, &horizontal_;
  const int64_t classes_, stride_;
};

// First output of every cell of an axis, cells counted from -2; outputs outside a zero border are cells of their own.
struct Starts {
  Buffer<int32_t> at;
  template <class A> Starts(const Axis& axis, const Taps<A>& taps) : at(axis.in + 4) {
    int64_t x = 0;
    for (int64_t cell = -2; cell <= axis.in + 1; ++cell) {
      while (x < axis.out && taps.cell[x] < cell) ++x;
      at[cell + 2] = int32_t(x);
    }
  }
  int32_t operator()(int64_t cell) const { return at[cell + 2]; }
};

template <class T, class L> void run(const Map& logits, const Grid& grid, L* labels) {
  using A = arithmetic_t<T>;
  const Taps<A> vertical(grid.y), horizontal(grid.x);
  const Starts rows(grid.y, vertical), columns(grid.x, horizontal);
  const int64_t h = logits.h, w = logits.w, cells = w + 1;
  const int64_t stride = round_up(cells, kLanes<A>) + 1;
  const Cells<A, L> work(grid, vertical, horizontal, logits.c, stride);
  parallel(logits.n * (h + 1), [&](int64_t begin, int64_t end) {
    const Buffer<A> coarse(2 * logits.c * stride + kLanes<A>);
    Survivors<A> survivors(round_up(cells, kLanes<A>));
    int64_t loaded[2] = {-2, -2};
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / (h + 1), i = unit % (h + 1) - 1;
      L* image = labels + n * grid.y.out * grid.x.out;
      // Rows and columns outside a zero border read nothing but zeros: a tie of all classes.
      if (i == -1) work.fill(image, {0, rows(-1), 0, grid.x.out}, 0);
      if (i == h - 1) work.fill(image, {rows(h), grid.y.out, 0, grid.x.out}, 0);
      const int64_t top = rows(i), bottom = rows(i + 1);
      if (top == bottom) continue;
      const A* pair[2];
      for (int k = 0; k < 2; ++k) {
        const int slot = (i + k + 1) & 1;
        A* row = coarse + slot * logits.c * stride;
        const bool outside = grid.y.zero && (i + k < 0 || i + k >= h);
        const int64_t key = outside ? -1 : n * h + smaller(larger(i + k, int64_t(0)), h - 1);
        if (outside) std::memset(row, 0, logits.c * stride * sizeof(A));
        else if (loaded[slot] != key) load_row<T>(logits, n, key - n * h, grid.x.zero, stride, row);
        loaded[slot] = key;
        pair[k] = row;
      }
      prune(pair[0], pair[1], logits.c, stride, cells, survivors);
      work.fill(image, {top, bottom, 0, columns(-1)}, 0);
      work.fill(image, {top, bottom, columns(w), grid.x.out}, 0);
      for (int64_t j = 0; j < cells; ++j) {
        const Window window{top, bottom, columns(j - 1), columns(j)};
        if (survivors.count[j] == 1) work.fill(image, window, survivors.last[j]);
        else if (survivors.count[j] == 0) work.scan(image, window, pair[0] + j, pair[1] + j);
        else work.compete(image, window, pair[0] + j, pair[1] + j, survivors.bar[j]);
      }
    }
  });
}

}  // namespace

void upsample_argmax(const Map& logits, const Grid& grid, void* labels, Type type) {
  dispatch(logits.type, [&](auto t) {
    using T = decltype(t);
    switch (type) {
      case Type::u8: return run<T>(logits, grid, static_cast<uint8_t*>(labels));
      case Type::i16: return run<T>(logits, grid, static_cast<int16_t*>(labels));
      case Type::i32: return run<T>(logits, grid, static_cast<int32_t*>(labels));
      default: return run<T>(logits, grid, static_cast<int64_t*>(labels));
    }
  });
}

}  // namespace fcn_fast::FCN_FAST_ISA
