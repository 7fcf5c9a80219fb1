// Forward: see rows.h. Backward: every coarse row gathers the output rows that read it, then every coarse pixel of the
// row its columns; each sum in one fixed order, so the same bits on every run and at every thread count.

#include "cpu/ops.h"
#include "cpu/rows.h"

namespace fcn_fast::FCN_FAST_ISA {

void bilinear_upsample(const Map& input, const Grid& grid, const Map& output) {
  dispatch(input.type, [&](auto t) { sample_rows<decltype(t)>(input, grid, output, nullptr, 0, 0); });
}

namespace {

// sum[x] = the weighted rows of a footprint.
template <class T, class A>
void gather_rows(const T* rows, int64_t stride, int32_t count, const A* weights, int64_t width, A* sum) {
  transform(sum, width, [&](const auto& at) {
    Vec<A> total{};
    for (int32_t k = 0; k < count; ++k) total = mul_add(splat(weights[k]), at(rows + k * stride), total);
    return total;
  });
}

// A coarse pixel from its columns, `inner` numbers at a time.
template <class A>
void gather_columns(const A* columns, int64_t width, int64_t inner, const Footprints<A>& footprints, A* out) {
  for (int64_t j = 0; j < width; ++j)
    gather_rows(columns + footprints.begin[j] * inner, inner, footprints.end[j] - footprints.begin[j],
                footprints.weights + footprints.offset[j], inner, out + j * inner);
}

// kLanes rows of `width` numbers to `width` vectors of kLanes, or back; rows past `count` are not touched.
template <class A> void rows_to_lanes(const A* rows, int64_t stride, int64_t width, A* out) {
  constexpr int lanes = kLanes<A>;
  for (int64_t x = 0; x < width; x += lanes) {
    Vec<A> block[lanes];
    for (int k = 0; k < lanes; ++k) block[k] = load(rows + k * stride + x);
    transpose<A>(block);
    for (int k = 0; k < lanes; ++k) store(out + (x + k) * lanes, block[k]);
  }
}
template <class T, class A> void lanes_to_rows(const A* in, int64_t width, int64_t count, T* rows, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  for (int64_t x = 0; x < width; x += lanes) {
    Vec<A> block[lanes];
    for (int k = 0; k < lanes; ++k) block[k] = load(in + (x + k) * lanes);
    transpose<A>(block);
    for (int64_t k = 0; k < smaller(int64_t(lanes), count); ++k) {
      if (width - x >= lanes) store(rows + k * stride + x, block[k]);
      else store(rows + k * stride + x, block[k], width - x);
    }
  }
}

template <class T> void backward(const Map& grad_output, const Grid& grid, const Map& grad_input) {
  using A = arithmetic_t<T>;
  constexpr int lanes = kLanes<A>;
  const Footprints<A> vertical(grid.y, Taps<A>(grid.y)), horizontal(grid.x, Taps<A>(grid.x));
  const Planes planes(grad_output);
  const int64_t height = grad_input.h, width = grad_input.w, inner = planes.inner, row = grad_output.w * inner;
  const int64_t stride = round_up(row, lanes);
  const auto gather = [&](int64_t plane, int64_t i, A* sum) {
    const T* rows = static_cast<const T*>(grad_output.data) + (plane * grad_output.h + vertical.begin[i]) * row;
    gather_rows(rows, row, vertical.end[i] - vertical.begin[i], vertical.weights + vertical.offset[i], row, sum);
  };
  T* const out = static_cast<T*>(grad_input.data);
  if (inner > 1) {
    parallel(planes.count * height, [&](int64_t begin, int64_t end) {
      const Buffer<A> sum(row), narrow(width * inner);
      for (int64_t unit = begin; unit < end; ++unit) {
        gather(unit / height, unit % height, sum);
        gather_columns<A>(sum, width, inner, horizontal, narrow);
        transform(out + unit * width * inner, width * inner, [&](const auto& at) { return at(static_cast<const A*>(narrow)); });
      }
    });
    return;
  }
  // A pixel of one number leaves no vector to gather columns with: take as many rows as a vector has lanes.
  const int64_t groups = ceil_div(height, lanes);
  parallel(planes.count * groups, [&](int64_t begin, int64_t end) {
    const Buffer<A> sums(lanes * stride), columns(stride * lanes), narrow(round_up(width, lanes) * lanes);
    std::memset(sums, 0, lanes * stride * sizeof(A));
    std::memset(narrow, 0, round_up(width, lanes) * lanes * sizeof(A));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t plane = unit / groups, first = unit % groups * lanes, count = smaller(int64_t(lanes), height - first);
      for (int64_t k = 0; k < count; ++k) gather(plane, first + k, sums + k * stride);
      rows_to_lanes<A>(sums, stride, stride, columns);
      gather_columns<A>(columns, width, lanes, horizontal, narrow);
      lanes_to_rows<T, A>(narrow, width, count, out + (plane * height + first) * width, width);
    }
  });
}

}  // namespace

void bilinear_upsample_backward(const Map& grad_output, const Grid& grid, const Map& grad_input) {
  dispatch(grad_output.type, [&](auto t) { backward<decltype(t)>(grad_output, grid, grad_input); });
}

}  // namespace fcn_fast::FCN_FAST_ISA
