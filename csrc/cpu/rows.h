// Upsampled rows, for bilinear_upsample and skip_fuse. A row of an NCHW plane is w numbers, a row of a channels_last
// image is w * c; but for the horizontal step the two are the same work.
//
// A coarse row is expanded to the output's width once; then every output row is a weighted sum of two expanded rows,
// a stream of multiply-adds bound by writing the output.
#pragma once

#include "cpu/simd.h"

namespace fcn_fast::FCN_FAST_ISA {

struct Planes {
  int64_t count, inner;  // planes, and numbers a pixel within one
  explicit Planes(const Map& map) : count(map.channels_last ? map.n : map.n * map.c), inner(map.channels_last ? map.c : 1) {}
};

// One coarse row at the output's width.
template <class T, class A>
void expand_row(const T* row, int64_t width, int64_t inner, int64_t out_width, const Taps<A>& taps, A* wide, A* out) {
  transform(wide, width * inner, [&](const auto& at) { return at(row); });
  if (inner == 1) {
    const int32_t *low = taps.low, *high = taps.high;
    const A *low_weight = taps.low_weight, *high_weight = taps.high_weight;
    for (int64_t x = 0; x < out_width; ++x)
      out[x] = weighted(low_weight[x], wide[low[x]]) + weighted(high_weight[x], wide[high[x]]);
    return;
  }
  for (int64_t x = 0; x < out_width; ++x) {
    const A *a = wide + taps.low[x] * inner, *b = wide + taps.high[x] * inner;
    const A wa = taps.low_weight[x], wb = taps.high_weight[x];
    A* pixel = out + x * inner;
    // Where only one tap counts, both point to it.
    if (wa == 0 || wb == 0)
      transform(pixel, inner, [&](const auto& at) { return wa + wb == 0 ? Vec<A>{} : at(a) * (wa + wb); });
    else
      transform(pixel, inner, [&](const auto& at) { return at(a) * wa + at(b) * wb; });
  }
}

// The two expanded rows under the current output row of one plane.
template <class T> class RowPair {
 public:
  using A = arithmetic_t<T>;

  RowPair(const Map& map, int64_t out_width, const Taps<A>& taps)
      : map_(map), inner_(Planes(map).inner), out_width_(out_width), taps_(taps), wide_(map.w * inner_),
        rows_{Buffer<A>(out_width * inner_), Buffer<A>(out_width * inner_)} {}

  // Expanded row i of a plane, kept until two others were asked for.
  const A* row(int64_t plane, int64_t i) {
    const int64_t key = plane * map_.h + i;
    for (int slot = 0; slot < 2; ++slot)
      if (keys_[slot] == key) {
        last_ = slot;
        return rows_[slot];
      }
    last_ = 1 - last_;
    keys_[last_] = key;
    const T* source = static_cast<const T*>(map_.data) + key * map_.w * inner_;
    expand_row(source, map_.w, inner_, out_width_, taps_, static_cast<A*>(wide_), static_cast<A*>(rows_[last_]));
    return rows_[last_];
  }

 private:
  const Map& map_;
  int64_t inner_, out_width_;
  const Taps<A>& taps_;
  Buffer<A> wide_;
  Buffer<A> rows_[2];
  int64_t keys_[2] = {-1, -1};
  int last_ = 1;
};

// output = input at grid, and where skip is not null the skip's window from (top, left) added.
template <class T> void sample_rows(const Map& input, const Grid& grid, const Map& output, const Map* skip, int64_t top, int64_t left) {
  using A = arithmetic_t<T>;
  const Taps<A> vertical(grid.y), horizontal(grid.x);
  const Planes planes(input);
  const int64_t row = output.w * planes.inner;
  // Enough rows that expanding the coarse rows at a tile's edge twice does not count, few enough to share out.
  const int64_t tile = larger(int64_t(16), 8 * ceil_div(grid.y.unit, larger(grid.y.step, int64_t(1))));
  const int64_t tiles = ceil_div(output.h, tile);
  parallel(planes.count * tiles, [&](int64_t begin, int64_t end) {
    RowPair<T> pair(input, output.w, horizontal);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t plane = unit / tiles, first = unit % tiles * tile;
      for (int64_t y = first; y < smaller(first + tile, output.h); ++y) {
        const A low_weight = vertical.low_weight[y], high_weight = vertical.high_weight[y];
        const A* low = pair.row(plane, vertical.low[y]);
        const A* high = pair.row(plane, vertical.high[y]);
        T* out = static_cast<T*>(output.data) + (plane * output.h + y) * row;
        const T* added =
            skip ? static_cast<const T*>(skip->data) + ((plane * skip->h + y + top) * skip->w + left) * planes.inner : nullptr;
        const auto write = [&](const auto& value) {
          if (added) transform(out, row, [&](const auto& at) { return value(at) + at(added); });
          else transform(out, row, value);
        };
        if (low_weight != 0 && high_weight != 0)
          write([&](const auto& at) { return mul_add(splat(high_weight), at(high), at(low) * low_weight); });
        else if (low_weight + high_weight != 0)
          write([&](const auto& at) { return at(low) * (low_weight + high_weight); });
        else
          write([&](const auto&) { return Vec<A>{}; });
      }
    }
  });
}

}  // namespace fcn_fast::FCN_FAST_ISA
