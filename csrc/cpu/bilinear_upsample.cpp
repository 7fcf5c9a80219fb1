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

template <class T, class A>
void gather_columns(const A* sum, int64_t width, int64_t inner, const Footprints<A>& footprints, A* narrow, T* out) {
  for (int64_t j = 0; j < width; ++j) {
    const A* weights = footprints.weights + footprints.offset[j];
    const A* from = sum + footprints.begin[j] * inner;
    const int32_t count = footprints.end[j] - footprints.begin[j];
    if (inner == 1) {
      A total = 0;
      for (int32_t k = 0; k < count; ++k) total = mul_add(weights[k], from[k], total);
      narrow[j] = total;
    } else {
      gather_rows(from, inner, count, weights, inner, narrow + j * inner);
    }
  }
  transform(out, width * inner, [&](const auto& at) { return at(narrow); });
}

template <class T> void backward(const Map& grad_output, const Grid& grid, const Map& grad_input) {
  using A = arithmetic_t<T>;
  const Footprints<A> vertical(grid.y, Taps<A>(grid.y)), horizontal(grid.x, Taps<A>(grid.x));
  const Planes planes(grad_output);
  const int64_t row = grad_output.w * planes.inner;
  parallel(planes.count * grad_input.h, [&](int64_t begin, int64_t end) {
    const Buffer<A> sum(row), narrow(grad_input.w * planes.inner);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t plane = unit / grad_input.h, i = unit % grad_input.h;
      const T* rows = static_cast<const T*>(grad_output.data) + (plane * grad_output.h + vertical.begin[i]) * row;
      gather_rows(rows, row, vertical.end[i] - vertical.begin[i], vertical.weights + vertical.offset[i], row, static_cast<A*>(sum));
      T* out = static_cast<T*>(grad_input.data) + unit * grad_input.w * planes.inner;
      gather_columns(static_cast<const A*>(sum), grad_input.w, planes.inner, horizontal, static_cast<A*>(narrow), out);
    }
  });
}

}  // namespace

void bilinear_upsample_backward(const Map& grad_output, const Grid& grid, const Map& grad_input) {
  dispatch(grad_output.type, [&](auto t) { backward<decltype(t)>(grad_output, grid, grad_input); });
}

}  // namespace fcn_fast::FCN_FAST_ISA
