#include "lib/overlap.h"

#include <algorithm>
#include <numeric>
#include <utility>

// Reading order: BoundedSum, a search that answers both questions, then the two questions put to it.

namespace fovea {
namespace {

// Is there a solution of sum x_i * step_i = target with 0 <= x_i <= count_i? A search over the terms by falling step.
// At each it tries only those x that leave a target which the remaining terms can reach and which their gcd divides; a
// dense remainder (it reaches every such target: a contiguous block, two coprime strides) ends the search at once.
// Layouts met in practice take a handful of steps. The question is NP-hard in general, hence the cap.
class BoundedSum {
 public:
  void Add(int64_t step, int64_t count) {
    if (count == 0) return;
    int at = 0;
    while (at < num_terms_ && terms_[at].step > step) ++at;
    if (at < num_terms_ && terms_[at].step == step) {
      terms_[at].count += count;
      return;
    }
    for (int i = num_terms_; i > at; --i) terms_[i] = terms_[i - 1];
    terms_[at].step = step;
    terms_[at].count = count;
    ++num_terms_;
  }

  bool Reaches(int64_t target) {
    if (num_terms_ == 0) return target == 0;
    Prepare();
    return Search(terms_, target);
  }

 private:
  struct Term {
    int64_t step, count;
    // Of this term and all after it: the largest sum, the gcd of the steps, and whether every multiple of gcd up to
    // reach is a sum.
    int64_t reach, gcd;
    bool dense;
    // x * step = target (mod next gcd) exactly if x = target / gcd * inverse (mod period).
    int64_t period, inverse;
  };

  void Prepare() {
    Term* last = &terms_[num_terms_ - 1];
    last->reach = last->step * last->count;
    last->gcd = last->step;
    last->dense = true;
    for (Term* t = last - 1; t >= terms_; --t) {
      const Term& next = t[1];
      t->reach = next.reach + t->step * t->count;
      t->gcd = std::gcd(t->step, next.gcd);
      t->dense = next.dense && t->gcd == next.gcd && t->step <= next.reach + next.gcd;
      t->period = next.gcd / t->gcd;
      t->inverse = Inverse(t->step / t->gcd % t->period, t->period);
    }
  }

  bool Search(const Term* t, int64_t target) {
    if (target < 0 || target > t->reach || target % t->gcd != 0) return false;
    if (t->dense) return true;
    const Term& next = t[1];
    const int64_t last = std::min(t->count, target / t->step);
    int64_t x = target > next.reach ? (target - next.reach + t->step - 1) / t->step : 0;
    const int64_t residue = MultiplyModulo(target / t->gcd % t->period, t->inverse, t->period);
    x += (residue - x % t->period + t->period) % t->period;
    for (; x <= last; x += t->period) {
      if (--steps_left_ < 0) return false;
      if (Search(&next, target - x * t->step)) return true;
    }
    return false;
  }

  static int64_t MultiplyModulo(int64_t a, int64_t b, int64_t modulus) {
    __extension__ using Wide = __int128;
    return static_cast<int64_t>(static_cast<Wide>(a) * b % modulus);
  }

  // Extended Euclid: the inverse of a modulo modulus, to which a is coprime; 0 for modulus 1.
  static int64_t Inverse(int64_t a, int64_t modulus) {
    int64_t r0 = modulus, r1 = a, s0 = 0, s1 = 1;
    while (r1 != 0) {
      const int64_t quotient = r0 / r1;
      r0 = std::exchange(r1, r0 - quotient * r1);
      s0 = std::exchange(s1, s0 - quotient * s1);
    }
    return (s0 % modulus + modulus) % modulus;
  }

  Term terms_[2 * kDims + 1];  // two tensors' dimensions and the bytes within an element
  int num_terms_ = 0;
  // About a millisecond. Past it the answer is "no": only a layout built to defeat the search gets there, and refusing
  // a call that may well be right would be the worse mistake.
  int steps_left_ = 100000;
};

int64_t Magnitude(int64_t x) { return x < 0 ? -x : x; }

void AddBytes(const View& view, BoundedSum* sum) {
  sum->Add(1, view.element_bytes - 1);
  for (int d = 0; d < kDims; ++d) {
    if (view.stride[d] != 0) sum->Add(Magnitude(view.stride[d]) * view.element_bytes, view.extent[d] - 1);
  }
}

}  // namespace

bool Overlap(const View& a, const View& b) {
  if (a.begin >= b.end || b.begin >= a.end) return false;
  // A byte of a is a.begin + (a sum of a's steps). Counted downwards from its last byte, one of b is b.end - 1 - (a sum
  // of b's steps). They meet where the two sums add up to the distance; negative strides merely count from the other
  // end.
  BoundedSum sum;
  AddBytes(a, &sum);
  AddBytes(b, &sum);
  return sum.Reaches(static_cast<int64_t>(b.end - 1 - a.begin));
}

bool OverlapsItself(const View& view) {
  if (view.begin == view.end) return false;
  int64_t step[kDims], count[kDims];
  int n = 0;
  for (int d = 0; d < kDims; ++d) {
    if (view.extent[d] <= 1) continue;
    if (view.stride[d] == 0) return true;
    int at = n++;
    for (; at > 0 && step[at - 1] > Magnitude(view.stride[d]); --at) {
      step[at] = step[at - 1];
      count[at] = count[at - 1];
    }
    step[at] = Magnitude(view.stride[d]);
    count[at] = view.extent[d] - 1;
  }
  // The difference of the two indices is a non-zero vector x with sum x_i * step_i = 0 and |x_i| <= count_i. Let `top`
  // be its non-zero place of the largest step, and x_top >= 1 without loss. A step above all that smaller ones reach
  // (proper nesting, nearly every layout) cannot be it. Shifting each x_i to start at 0 makes it a BoundedSum.
  int64_t reach = 0;
  for (int top = 0; top < n; reach += step[top] * count[top], ++top) {
    if (step[top] > reach) continue;
    BoundedSum sum;
    sum.Add(step[top], count[top] - 1);
    for (int i = 0; i < top; ++i) sum.Add(step[i], 2 * count[i]);
    if (sum.Reaches(reach - step[top])) return true;
  }
  return false;
}

bool SameElements(const View& a, const View& b) {
  return a.begin == b.begin && a.end == b.end && a.element_bytes == b.element_bytes &&
         std::equal(a.stride, a.stride + kDims, b.stride);
}

}  // namespace fovea
