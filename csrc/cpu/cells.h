// The softmax loss inside cells of a bilinear grid, the outputs between four coarse pixels, and its gradient at the
// corners. Used by upsample_softmax_loss.cpp, where the method is described.
#pragma once

#include "cpu/labels.h"

namespace fcn_fast::FCN_FAST_ISA {
namespace {

// Outputs of a block along an axis. Short runs keep the powers of the ratios accurate, and the sums in registers.
constexpr int kColumns = 4, kRows = FCN_FAST_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kBlock = kRows * kColumns;
constexpr int kAtOnce = 4;  // blocks that are worked on together

// A run of outputs between two neighbours of a padded coarse axis, whose index 0 lies before the map: the edge again, or
// zeros.
struct Run {
  int32_t low, high, first, count;
};

// All runs of an axis. Weights of the two neighbours are listed a block a run: output i of a run stands at i * stride
// and, along the other axis of the block, `repeat` times, 1 and 4 apart for rows and columns.
template <class A> struct Runs {
  Buffer<Run> runs;
  Buffer<A> low_weight, high_weight;
  int64_t count = 0;
  A step;  // from one output's high weight to the next

  Runs(const Axis& axis, bool vertical)
      : runs(axis.out), low_weight(axis.out * kBlock), high_weight(axis.out * kBlock), step(A(axis.step) / A(axis.unit)) {
    const Taps<A> taps(axis);
    const int longest = vertical ? kRows : kColumns, stride = vertical ? kColumns : 1, repeat = vertical ? 1 : kColumns;
    for (int64_t x = 0; x < axis.out; ++x) {
      int64_t remainder;
      axis.cell(x, remainder);
      const int32_t cell = taps.cell[x];
      const bool grows = x > 0 && cell == taps.cell[x - 1] && runs[count - 1].count < longest;
      if (!grows) {
        runs[count] = {larger(cell + 1, 0), smaller(cell + 2, int32_t(axis.in) + 1), int32_t(x), 0};
        for (int i = 0; i < kBlock; ++i) low_weight[count * kBlock + i] = high_weight[count * kBlock + i] = 0;
        ++count;
      }
      const int64_t at = (count - 1) * kBlock + runs[count - 1].count++ * stride;
      for (int k = 0; k < kBlock / longest; ++k) {
        low_weight[at + k * repeat] = A(axis.unit - remainder) / A(axis.unit);
        high_weight[at + k * repeat] = A(remainder) / A(axis.unit);
      }
    }
  }
};

// The four corners of a cell, each a list of classes: top left, top right, bottom left, bottom right.
template <class P> struct Corners {
  P tl, tr, bl, br;
};

// The outputs of a block, each list kBlock long, rows of kColumns after one another. label, own and even are
// LossRule::read's; places without an output have the label kIgnored and no weight. The results: sum of exp(logit -
// shift) over the classes; logit - shift of the label, and of all classes, weighted.
template <class A> struct Pixels {
  int rows, columns;
  const A *left, *right, *top, *bottom;  // what each output takes from the columns and the rows
  const int32_t* label;
  const A *own, *even;
  A *sum, *logit, *smoothed;
};

// A block of outputs inside one cell.
template <class A> struct Block {
  Corners<const A*> x;
  Corners<A*> grad;
  A shift;  // see Cells::shift
  Pixels<A> p;
};

template <class A> class Cells {
 public:
  static constexpr A kNever = sizeof(A) == 4 ? A(-8e37) : A(-8e300);  // a padding class: its exponential is 0

  Cells(const LossRule<A>& rule, int64_t classes, A row_step, A column_step, bool with_grad)
      : padded(round_up(classes, kLanes<A>)), rule_(rule), classes_(classes), row_step_(row_step),
        column_step_(column_step), with_grad_(with_grad), class_weight_(padded), terms_((kAtOnce * 4 + 1) * padded), shares_(kAtOnce * 2 * kBlock) {
    for (int64_t c = 0; c < padded; ++c) class_weight_[c] = c < classes ? rule.class_weight()[c] : A(0);
  }

  // The largest corner of a cell; NaN where its corners are too far apart (or not finite) for the geometric progression,
  // which would underflow at one end and come back wrong at the other, or all below the padding classes.
  A shift(const Corners<const A*>& x) const {
    Vec<A> largest = load(x.tl);
    Ints<A> gentle = largest == largest;
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      const Vec<A> p = load(x.tl + c), q = load(x.tr + c), r = load(x.bl + c), s = load(x.br + c);
      const Vec<A> most = vmax(vmax(p, q), vmax(r, s)), least = vmin(vmin(p, q), vmin(r, s));
      largest = vmax(largest, most);
      gentle &= most - least <= 20;
      gentle &= (p + q) + (r + s) <= A(3e38);  // not so for NaN, which a comparison can pass over
    }
    const A most = max_of<A>(largest);
    return any<A>(~gentle) || most <= kNever ? A(NAN) : most;
  }

  // Some blocks, at most kAtOnce. Each step is done for all of them before the next, so that their chains of dependent
  // instructions overlap.
  void run(const Block<A>* blocks, int count) {
    Kind kinds[kAtOnce];
    for (int i = 0; i < count; ++i) {
      kinds[i] = kind_of(blocks[i]);
      if (kinds[i] == kGeometric) with_shape(blocks[i], [&](auto r, auto k) { expand<r.value, k.value>(blocks[i], i); });
      else if (kinds[i] == kSkipped) skip(blocks[i].p);
      else steep(blocks[i]);
    }
    for (int i = 0; i < count; ++i)
      if (kinds[i] == kGeometric) find_logits(blocks[i], i);
    if (!with_grad_) return;
    for (int i = 0; i < count; ++i)
      if (kinds[i] == kGeometric) with_shape(blocks[i], [&](auto r, auto k) { gather_gradient<r.value, k.value>(blocks[i], i); });
    for (int i = 0; i < count; ++i)
      if (kinds[i] != kSkipped) subtract_targets(blocks[i].p, blocks[i].grad);
  }

  const int64_t padded;

 private:
  enum Kind { kSkipped, kGeometric, kSteep };

  static Kind kind_of(const Block<A>& block) {
    int32_t all = kIgnored, least = kIgnored;
    for (int i = 0; i < kBlock; ++i) {
      all &= block.p.label[i];
      least = smaller(least, block.p.label[i]);
    }
    if (all == kIgnored) return kSkipped;  // all ones, so each of them is
    return least == kBad || block.shift != block.shift ? kSteep : kGeometric;
  }

  template <int N> struct Constant {
    static constexpr int value = N;
  };
  // Call f with the rows and columns to compute, at least those that are wanted.
  template <class F> FCN_FAST_INLINE static void with_shape(const Block<A>& block, const F& f) {
    const auto columns = [&](auto rows) {
      if (block.p.columns == 1) f(rows, Constant<1>{});
      else if (block.p.columns == 2) f(rows, Constant<2>{});
      else f(rows, Constant<kColumns>{});
    };
    if (block.p.rows == 1) columns(Constant<1>{});
    else if (block.p.rows == 2) columns(Constant<2>{});
    else columns(Constant<kRows>{});
  }

  // The sums of the exponentials of R x K outputs, and the progressions they come from as lists in terms.
  template <int R, int K> void expand(const Block<A>& block, int slot) {
    const Corners<const A*>& x = block.x;
    A *const firsts = terms_ + slot * 4 * padded, *const ratios = firsts + padded, *const downs = ratios + padded,
      *const turns = downs + padded;
    const Vec<A> right = splat(block.p.right[0]), bottom = splat(block.p.bottom[0]);
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      const Vec<A> tl = load(x.tl + c), bl = load(x.bl + c);
      const Vec<A> top_rise = load(x.tr + c) - tl, bottom_rise = load(x.br + c) - bl, twist = bottom_rise - top_rise;
      const Vec<A> top = mul_add(right, top_rise, tl - block.shift), fall = mul_add(right, twist, bl - tl);
      store(firsts + c, exp(mul_add(bottom, fall, top)));
      store(ratios + c, exp(mul_add(bottom, twist, top_rise) * column_step_));
      if constexpr (R > 1) {
        store(downs + c, exp(fall * row_step_));
        store(turns + c, exp(twist * (row_step_ * column_step_)));
      }
    }
    Vec<A> sums[kBlock];
    for (int i = 0; i < kBlock; ++i) sums[i] = i / kColumns < R && i % kColumns < K ? Vec<A>{} : splat(A(1));
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      Vec<A> first = load(firsts + c), ratio = load(ratios + c);
#pragma GCC unroll 4
      for (int y = 0; y < R; ++y) {
        if (y) {
          first *= load(downs + c);
          ratio *= load(turns + c);
        }
        Vec<A> term = first;
        sums[y * kColumns] += term;
#pragma GCC unroll 4
        for (int k = 1; k < K; ++k) {
          term *= ratio;
          sums[y * kColumns + k] += term;
        }
      }
    }
    sums_of<A, kBlock>(sums, block.p.sum);
  }

  // The softmax's part of the gradient.
  template <int R, int K> void gather_gradient(const Block<A>& block, int slot) {
    const Pixels<A>& p = block.p;
    const Corners<A*>& grad = block.grad;
    const A *const firsts = terms_ + slot * 4 * padded, *const ratios = firsts + padded, *const downs = ratios + padded,
            *const turns = downs + padded;
    const A *const u = shares_ + slot * 2 * kBlock, *const v = u + kBlock;
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      Vec<A> first = load(firsts + c), ratio = load(ratios + c);
      Vec<A> tl = load(grad.tl + c), tr = load(grad.tr + c), bl = load(grad.bl + c), br = load(grad.br + c);
#pragma GCC unroll 4
      for (int y = 0; y < R; ++y) {
        if (y) {
          first *= load(downs + c);
          ratio *= load(turns + c);
        }
        const int end = y * kColumns + K - 1;
        Vec<A> left = splat(u[end]), right = splat(v[end]);
#pragma GCC unroll 4
        for (int i = end - 1; i > end - K; --i) {
          left = mul_add(left, ratio, splat(u[i]));
          right = mul_add(right, ratio, splat(v[i]));
        }
        left *= first;
        right *= first;
        tl = mul_add(left, splat(p.top[y * kColumns]), tl);
        tr = mul_add(right, splat(p.top[y * kColumns]), tr);
        bl = mul_add(left, splat(p.bottom[y * kColumns]), bl);
        br = mul_add(right, splat(p.bottom[y * kColumns]), br);
      }
      store(grad.tl + c, tl);
      store(grad.tr + c, tr);
      store(grad.bl + c, bl);
      store(grad.br + c, br);
    }
  }

  // The same an output at a time, with its own largest logit and no use made of its neighbours.
  void steep(const Block<A>& block) {
    const Corners<const A*>& x = block.x;
    const Corners<A*>& grad = block.grad;
    const Pixels<A>& p = block.p;
    skip(p);
    A* const terms = steep_terms();
    for (int i = 0; i < kBlock; ++i) {
      if (p.label[i] == kIgnored) continue;
      const A left = p.left[i], right = p.right[i], top = p.top[i], bottom = p.bottom[i];
      const A weights[4] = {top * left, top * right, bottom * left, bottom * right};
      const A* const corners[4] = {x.tl, x.tr, x.bl, x.br};
      Vec<A> most = splat(-A(INFINITY));
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        Vec<A> logit{};
        for (int k = 0; k < 4; ++k)
          if (weights[k] != 0) logit = mul_add(splat(weights[k]), load(corners[k] + c), logit);
        for (int64_t k = classes_ - c; k < kLanes<A>; ++k) logit[k] = -A(INFINITY);
        store(terms + c, logit);
        most = vmax(most, logit);
      }
      const A largest = max_of<A>(most);
      p.logit[i] = terms[larger(p.label[i], 0)] - largest;
      Vec<A> sums{}, smooth{};
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        const Vec<A> logit = load(terms + c) - largest, weight = load<A>(class_weight_ + c);
        smooth += weight == 0 ? Vec<A>{} : logit * weight;
        const Vec<A> term = exp(logit);
        store(terms + c, term);
        sums += term;
      }
      p.sum[i] = sum_of<A>(sums);
      p.smoothed[i] = sum_of<A>(smooth);
      if (!with_grad_) continue;
      const A share = (p.own[i] + p.even[i] * rule_.class_sum) / p.sum[i];
      add_scaled(grad.tl, top, left, share);
      add_scaled(grad.tr, top, right, share);
      add_scaled(grad.bl, bottom, left, share);
      add_scaled(grad.br, bottom, right, share);
    }
  }

  void skip(const Pixels<A>& p) const {
    for (int i = 0; i < kBlock; ++i) {
      p.sum[i] = 1;
      p.logit[i] = p.smoothed[i] = 0;
    }
  }

  // What the softmax is multiplied by in the gradient of the outputs from i on.
  Vec<A> whole(const Pixels<A>& p, int i) const {
    return rule_.smooth != 0 ? load(p.own + i) + load(p.even + i) * rule_.class_sum : load(p.own + i);
  }

  A* steep_terms() const { return terms_ + kAtOnce * 4 * padded; }

  void add_scaled(A* grad, A weight, A other_weight, A share) {
    if (weight == 0 || other_weight == 0) return;
    for (int64_t c = 0; c < padded; c += kLanes<A>)
      store(grad + c, mul_add(load(steep_terms() + c), splat(share * weight * other_weight), load(grad + c)));
  }

  // The labels' logits; what the softmax counts in the gradient of the left and right columns; and the weighted sum over the classes, which is as bilinear in the cell as each of them.
  void find_logits(const Block<A>& block, int slot) {
    const Corners<const A*>& x = block.x;
    const Pixels<A>& p = block.p;
    const A shift = block.shift;
    A corners[4] = {};
    if (rule_.smooth != 0) {
      Vec<A> sums[4] = {};
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        const Vec<A> weight = load<A>(class_weight_ + c);
        sums[0] += (load(x.tl + c) - shift) * weight;
        sums[1] += (load(x.tr + c) - shift) * weight;
        sums[2] += (load(x.bl + c) - shift) * weight;
        sums[3] += (load(x.br + c) - shift) * weight;
      }
      sums_of<A, 4>(sums, corners);
    }
    alignas(64) int32_t label[kBlock + kLanes<A>] = {};
    for (int i = 0; i < kBlock; ++i) label[i] = larger(p.label[i], 0);
    for (int i = 0; i < kBlock; i += kLanes<A>) {
      const Vec<A> left = load(p.left + i), right = load(p.right + i), top = load(p.top + i), bottom = load(p.bottom + i);
      const auto at = [&](Vec<A> tl, Vec<A> tr, Vec<A> bl, Vec<A> br) {
        return mul_add(top, mul_add(left, tl, right * tr), bottom * mul_add(left, bl, right * br));
      };
      store(p.logit + i, at(gather(x.tl, label + i) - shift, gather(x.tr, label + i) - shift,
                            gather(x.bl, label + i) - shift, gather(x.br, label + i) - shift));
      const Vec<A> share = whole(p, i) / load(p.sum + i);
      store(shares_ + slot * 2 * kBlock + i, share * left);
      store(shares_ + (slot * 2 + 1) * kBlock + i, share * right);
      store(p.smoothed + i, at(splat(corners[0]), splat(corners[1]), splat(corners[2]), splat(corners[3])));
    }
  }

  // The labels' and the smoothing's part of the gradient.
  void subtract_targets(const Pixels<A>& p, const Corners<A*>& grad) {
    alignas(64) A parts[4][kBlock + kLanes<A>], sums[4];
    bool uniform = true;
    for (int i = 0; i < kBlock; ++i) uniform &= p.label[i] == p.label[0];
    split(p, p.own, parts);
    if (uniform) {
      add_up(parts, sums);
      subtract(grad, p.label[0], sums[0], sums[1], sums[2], sums[3]);
    } else {
      for (int i = 0; i < kBlock; ++i)
        if (p.label[i] >= 0) subtract(grad, p.label[i], parts[0][i], parts[1][i], parts[2][i], parts[3][i]);
    }
    if (rule_.smooth == 0) return;
    split(p, p.even, parts);
    add_up(parts, sums);
    for (int64_t c = 0; c < padded; c += kLanes<A>) {
      const Vec<A> weight = load<A>(class_weight_ + c);
      store(grad.tl + c, load(grad.tl + c) - weight * sums[0]);
      store(grad.tr + c, load(grad.tr + c) - weight * sums[1]);
      store(grad.bl + c, load(grad.bl + c) - weight * sums[2]);
      store(grad.br + c, load(grad.br + c) - weight * sums[3]);
    }
  }
  static void subtract(const Corners<A*>& grad, int32_t label, A tl, A tr, A bl, A br) {
    grad.tl[label] -= tl;
    grad.tr[label] -= tr;
    grad.bl[label] -= bl;
    grad.br[label] -= br;
  }
  // What each corner gets of each output's value.
  static void split(const Pixels<A>& p, const A* value, A (&parts)[4][kBlock + kLanes<A>]) {
    for (int i = 0; i < kBlock; i += kLanes<A>) {
      const Vec<A> left = load(value + i) * load(p.left + i), right = load(value + i) * load(p.right + i);
      store(parts[0] + i, left * load(p.top + i));
      store(parts[1] + i, right * load(p.top + i));
      store(parts[2] + i, left * load(p.bottom + i));
      store(parts[3] + i, right * load(p.bottom + i));
    }
  }
  static void add_up(const A (&parts)[4][kBlock + kLanes<A>], A* sums) {
    Vec<A> totals[4] = {};
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < kBlock; i += kLanes<A>) totals[k] += load(parts[k] + i);
    sums_of<A, 4>(totals, sums);
  }

  const LossRule<A>& rule_;
  const int64_t classes_;
  const A row_step_, column_step_;
  const bool with_grad_;
  Buffer<A> class_weight_, terms_, shares_;
};

}  // namespace
}  // namespace fcn_fast::FCN_FAST_ISA
