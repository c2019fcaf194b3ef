// Vectors of the machine, what PyTorch's SiLU is on them, and memory on their borders.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace zoo {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 8;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6;
#else
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 6;
#endif
template <class T> struct Vectors;
template <> struct Vectors<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int lanes = VECTOR_BYTES / 4, mantissa = 23, bias = 127, terms = 7;
  static constexpr float magic = 12582912.f, highest = 88.f, ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;
};
template <> struct Vectors<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int lanes = VECTOR_BYTES / 8, mantissa = 52, bias = 1023, terms = 13;
  static constexpr double magic = 6755399441055744.0, highest = 708.0, ln2_high = 0.693147180369123816490,
                          ln2_low = 1.90821492927058770002e-10;
};

template <class V, class T> inline V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T> inline void store(T* to, V v) { std::memcpy(to, &v, sizeof v); }

// A vector, halved and added until it has the 16 bytes of every machine.
template <class T, int N> struct Part {
  typedef T V __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N> inline auto add_halves(typename Part<T, N>::V v) {
  if constexpr (N * sizeof(T) <= 16) {
    return v;
  } else {
    typename Part<T, N / 2>::V halves[2];
    std::memcpy(halves, &v, sizeof v);
    return add_halves<T, N / 2>(halves[0] + halves[1]);
  }
}

#ifdef __clang__
#define ZOO_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZOO_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Part<int32_t, 4>::V{__VA_ARGS__})
#endif

// Four sums over the lanes of four vectors.
using Floats = Vectors<float>::V;
inline void sum_of_lanes(Floats a, Floats b, Floats c, Floats d, float* sums) {
  constexpr int L = Vectors<float>::lanes;
  const auto p = add_halves<float, L>(a), q = add_halves<float, L>(b);
  const auto r = add_halves<float, L>(c), s = add_halves<float, L>(d);
  const auto pq = ZOO_SHUFFLE(p, q, 0, 4, 1, 5) + ZOO_SHUFFLE(p, q, 2, 6, 3, 7);  // p0 + p2, q0 + q2, p1 + p3, q1 + q3
  const auto rs = ZOO_SHUFFLE(r, s, 0, 4, 1, 5) + ZOO_SHUFFLE(r, s, 2, 6, 3, 7);
  store(sums, ZOO_SHUFFLE(pq, rs, 0, 1, 4, 5) + ZOO_SHUFFLE(pq, rs, 2, 3, 6, 7));
}

using Doubles = Vectors<double>::V;
inline void sum_of_lanes(Doubles a, Doubles b, Doubles c, Doubles d, double* sums) {
  constexpr int L = Vectors<double>::lanes;
  int k = 0;
  for (const auto& v : {a, b, c, d}) {
    const auto rest = add_halves<double, L>(v);
    sums[k++] = rest[0] + rest[1];
  }
}

// e^x; NaN stays NaN, and what is too large or too small for the type is held at its ends.
template <class T> inline typename Vectors<T>::V exponential(typename Vectors<T>::V x) {
  using S = Vectors<T>;
  using V = typename S::V;
  const V top = T(S::highest) - V{}, bottom = -top;
  x = x > top ? top : x;
  x = x < bottom ? bottom : x;
  const V shifted = x * T(1.44269504088896340736) + T(S::magic);
  const V whole = shifted - T(S::magic);
  const V rest = x - whole * T(S::ln2_high) - whole * T(S::ln2_low);
  V sum = T(1) - V{};
  for (int term = S::terms; term >= 1; --term) sum = sum * rest * T(1.0 / term) + T(1);
  typename S::Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + S::bias) << S::mantissa;
  V scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

template <class T> inline typename Vectors<T>::V sigmoid(typename Vectors<T>::V x) {
  return T(1) / (T(1) + exponential<T>(-x));
}

template <class T> void silu(const T* x, T* y, int64_t count) {
  using V = typename Vectors<T>::V;
  for (int64_t k = 0; k < count; k += Vectors<T>::lanes) {
    const V value = load<V>(x + k);
    store(y + k, V(value * sigmoid<T>(value)));
  }
}

// y *= silu'(x)
template <class T> void times_silu_slope(const T* x, T* y, int64_t count) {
  using V = typename Vectors<T>::V;
  for (int64_t k = 0; k < count; k += Vectors<T>::lanes) {
    const V value = load<V>(x + k), s = sigmoid<T>(value);
    store(y + k, V(load<V>(y + k) * s * (T(1) + value * (T(1) - s))));
  }
}

constexpr size_t HUGE_PAGE = size_t(1) << 21;

// Memory on the borders of vectors; it grows, is not initialised, and does not keep what was in it when it grows.
template <class T> class Buffer {
 public:
  T* resize(int64_t count) {
    if (count > capacity_) {
      capacity_ = 0;
      void* raw = nullptr;
      const size_t bytes = std::max<int64_t>(count, 1) * sizeof(T);
      if (posix_memalign(&raw, bytes < HUGE_PAGE ? 64 : HUGE_PAGE, bytes)) throw std::bad_alloc();
#ifdef __linux__
      if (bytes >= HUGE_PAGE) madvise(raw, bytes, MADV_HUGEPAGE);
#endif
      data_.reset(static_cast<T*>(raw));
      capacity_ = count;
    }
    return data_.get();
  }
  T* zeros(int64_t count) {
    std::memset(static_cast<void*>(resize(count)), 0, count * sizeof(T));
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t capacity_ = 0;
};

template <class T> inline int padded(int channels) {
  constexpr int lanes = Vectors<T>::lanes;
  return (channels + lanes - 1) / lanes * lanes;
}

}  // namespace zoo
