// What passes along edges: their geometry, the filters, and sums over neighbours with their derivatives.
#pragma once

#include <vector>

#include "lists.h"
#include "vectors.h"

namespace zoo {

constexpr int SPLINE = 6;  // rows of a table under one distance
constexpr int RECORD = 6;  // of an edge: direction, distance, and sine and cosine of π · distance / cutoff
constexpr int AHEAD = 3;   // edges, of what is fetched into the cache
constexpr double PI = 3.14159265358979323846;

struct Shape {
  int elements, channels, layers, radials, knots;  // knots 0: no table, the radial basis itself
  double cutoff, scale, average_neighbors;
  std::vector<double> frequencies;  // (radials,) n·π, but for how they were rounded

  int terms() const { return knots ? SPLINE : radials; }
  int rows() const { return knots ? knots + SPLINE - 1 : radials; }
};

// The filters of a layer without their envelope: for each panel of two vectors (rows, parts, channels of the panel).
//
// A filter is a sum over the rows of a radial basis, or over the six rows around a distance in a table: quintic
// B-splines through it at equal steps. It is a sum of sines over the distance; the coefficients of the spline through
// a sine are the same sine divided by the symbol of the spline.
template <class T> struct Filters {
  int parts = 0, count = 0;
  Buffer<T> values;

  void build(const T* weights, int parts_, const Shape& shape) {
    parts = parts_, count = shape.rows();
    const int channels = padded<T>(shape.channels), panel = 2 * Vectors<T>::lanes;
    T* to = values.zeros(int64_t(count) * parts * channels);
    std::vector<double> factors(shape.radials);
    for (int row = 0; row < count; ++row) {
      for (int k = 0; k < shape.radials; ++k) factors[k] = factor(row, k, shape);
      for (int part = 0; part < parts; ++part)
        for (int c = 0; c < shape.channels; ++c) {
          const T* weight = weights + (int64_t(part) * shape.channels + c) * shape.radials;
          double sum = 0;
          for (int k = 0; k < shape.radials; ++k) sum += factors[k] * weight[k];
          const int start = c / panel * panel, width = std::min(panel, channels - start);
          to[int64_t(start) * count * parts + (int64_t(row) * parts + part) * width + (c - start)] = T(sum);
        }
    }
  }

  const T* panel(int start) const { return values.get() + int64_t(start) * count * parts; }

 private:
  static double factor(int row, int k, const Shape& shape) {
    if (!shape.knots) return row == k;
    const double angle = shape.frequencies[k] / shape.knots;
    return std::sin(angle * (row - 2)) * 120 / (66 + 52 * std::cos(angle) + 2 * std::cos(2 * angle));
  }
};

// The records (edges, RECORD) of edges [first, last), which are sorted by their centre.
template <class T>
void measure(const Places& at, const int64_t* structure, const Lists& lists, int64_t first, int64_t last,
             const Shape& shape, T* records) {
  for (int64_t e = first; e < last; ++e) {
    const int64_t i = lists.center.get()[e], j = lists.neighbor.get()[e];
    T r[3], *to = records + e * RECORD;
    span(at, i, j, structure[i], lists.given.get()[e], r);
    const T distance = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]), angle = distance * T(PI / shape.cutoff);
    for (int k = 0; k < 3; ++k) to[k] = r[k] / distance;
    to[3] = distance, to[4] = to[5] = T(0);
    if (!shape.knots) to[4] = std::sin(angle), to[5] = std::cos(angle);
  }
}

// The edges that a thread is at, one column each, and the weights of the rows of their filters.
template <class T> struct Nearby {
  int64_t stride = 0;
  Buffer<T> ux, uy, uz, inverse, distance, sine, cosine, level, slope, weights, slopes, turned;
  Buffer<int32_t> row, other, edge;

  void reserve(int64_t edges, int terms) {
    stride = (edges + 15) / 16 * 16 + 16;
    for (auto* one : {&ux, &uy, &uz, &inverse, &distance, &sine, &cosine, &level, &slope}) one->resize(stride);
    weights.resize(stride * terms), slopes.resize(stride * terms), turned.resize(stride * 2);
    for (auto* one : {&row, &other, &edge}) one->resize(stride);
  }

  // records (edges, RECORD); the edge in column q is edges[q]
  void take(const T* records, const int32_t* edges, int64_t first, int64_t count) {
    std::fill_n(other.get() + count, AHEAD, 0);
    for (int64_t q = 0; q < count; ++q) {
      const int32_t e = edges ? edges[q] : int32_t(first + q);
      const T* record = records + int64_t(e) * RECORD;
      edge.get()[q] = e;
      ux.get()[q] = record[0], uy.get()[q] = record[1], uz.get()[q] = record[2], distance.get()[q] = record[3];
      sine.get()[q] = record[4], cosine.get()[q] = record[5];
    }
  }

  // Weights of rows and their derivatives by the distance, times the envelope over the distance.
  void weigh(const Shape& shape, int64_t count) {
    envelope(shape, count);
    shape.knots ? spline(shape, count) : sines(shape, count);
  }

 private:
  void envelope(const Shape& shape, int64_t count) {
    const T reach = T(1 / shape.cutoff), norm = T(std::sqrt(2 / shape.cutoff / shape.average_neighbors));
    const T* d = distance.get();
    T *inv = inverse.get(), *value = level.get(), *change = slope.get();
#pragma omp simd
    for (int64_t q = 0; q < count; ++q) {
      const T x = d[q] * reach, left = T(1) - x, over = T(1) / d[q];
      const T sum = T(1) + x * (T(3) + x * (T(6) + x * (T(10) + x * (T(15) + x * T(21)))));
      const bool beyond = x >= T(1);  // NaN is not
      const T u = beyond ? T(0) : left * left * left * sum;
      const T du = beyond ? T(0) : T(-168) * x * x * x * x * x * left * left * reach;
      inv[q] = over;
      value[q] = norm * u * over;
      change[q] = norm * (du - u * over) * over;
    }
  }

  void sines(const Shape& shape, int64_t count) {
    const T *d = distance.get(), *s1 = sine.get(), *c1 = cosine.get(), *value = level.get(), *change = slope.get();
    T *s = turned.get(), *c = turned.get() + stride;
    std::fill_n(row.get(), count, 0);
    std::copy_n(s1, count, s), std::copy_n(c1, count, c);
    for (int k = 0; k < shape.radials; ++k) {
      T *w = weights.get() + k * stride, *dw = slopes.get() + k * stride;
      const T rate = T(shape.frequencies[k] / shape.cutoff), more = rate - T((k + 1) * PI / shape.cutoff);
#pragma omp simd
      for (int64_t q = 0; q < count; ++q) {
        const T angle = more * d[q], half = angle * angle * T(0.5);  // by which the frequency is not n·π
        const T sin = angle * (T(1) - half * T(1.0 / 3)), cos = T(1) - half + half * half * T(1.0 / 6);
        const T sine_here = s[q] * cos + c[q] * sin, cosine_here = c[q] * cos - s[q] * sin;
        w[q] = value[q] * sine_here;
        dw[q] = change[q] * sine_here + value[q] * rate * cosine_here;
        const T next = s[q] * c1[q] + c[q] * s1[q];
        c[q] = c[q] * c1[q] - s[q] * s1[q];
        s[q] = next;
      }
    }
  }

  void spline(const Shape& shape, int64_t count) {
    const T steps = T(shape.knots / shape.cutoff), end = T(shape.knots);
    const int last = shape.knots - 1;
    const T *d = distance.get(), *value = level.get(), *change = slope.get();
    int32_t* at = row.get();
    T *w = weights.get(), *dw = slopes.get();
    const int64_t n = stride;
#pragma omp simd
    for (int64_t q = 0; q < count; ++q) {
      const T exact = d[q] * steps;
      const T place = exact > end ? end : exact;  // NaN stays
      const int32_t knot = std::min(int32_t(place >= T(0) ? place : T(0)), last);
      const T t = place - T(knot), r = T(1) - t;
      const T a = value[q] * T(1.0 / 120), b = value[q] * T(steps / 24), f = change[q] * T(1.0 / 120);
      const T t2 = t * t, r2 = r * r, t4 = t2 * t2, r4 = r2 * r2;
      const T b0 = r4 * r, b5 = t4 * t;
      const T b1 = T(26) + t * (T(-50) + t * (T(20) + t * (T(20) + t * (T(-20) + t * T(5)))));
      const T b4 = T(26) + r * (T(-50) + r * (T(20) + r * (T(20) + r * (T(-20) + r * T(5)))));
      const T b2 = T(66) + t2 * (T(-60) + t2 * (T(30) - t * T(10)));
      const T b3 = T(66) + r2 * (T(-60) + r2 * (T(30) - r * T(10)));
      const T c1 = T(-10) + t * (T(8) + t * (T(12) + t * (T(-16) + t * T(5))));
      const T c4 = T(10) - r * (T(8) + r * (T(12) + r * (T(-16) + r * T(5))));
      const T c2 = t * (T(-24) + t2 * (T(24) - t * T(10))), c3 = r * (T(24) - r2 * (T(24) - r * T(10)));
      at[q] = knot;
      w[q] = a * b0, w[n + q] = a * b1, w[2 * n + q] = a * b2;
      w[3 * n + q] = a * b3, w[4 * n + q] = a * b4, w[5 * n + q] = a * b5;
      dw[q] = f * b0 - b * r4, dw[n + q] = f * b1 + b * c1, dw[2 * n + q] = f * b2 + b * c2;
      dw[3 * n + q] = f * b3 + b * c3, dw[4 * n + q] = f * b4 + b * c4, dw[5 * n + q] = f * b5 + b * t4;
    }
  }
};

// What messages are made of, at the first channel of a panel.
template <class T> struct Panel {
  const T* filters;  // (rows, parts, channels of the panel)
  const T* phi;      // (atoms or elements, parts, channels)
  const T* vectors;  // (atoms, 3, channels)
  const T* grad_scalars;  // (atoms, channels) ∂E/∂s
  const T* grad_vectors;  // (atoms, 3, channels) ∂E/∂v
  int64_t channels;
  int terms;
};

// The filters of one edge, N vectors of P parts, and with D their derivatives by the distance. K terms; 0: as given.
template <class T, int N, int P, int K, bool D> struct Filtered {
  using V = typename Vectors<T>::V;
  V value[P][N], slope[P][N];

  inline __attribute__((always_inline)) Filtered(const Nearby<T>& near, const Panel<T>& panel, int64_t q) {
    constexpr int L = Vectors<T>::lanes;
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) value[p][n] = slope[p][n] = V{};
    const T* from = panel.filters + int64_t(near.row.get()[q]) * (P * N * L);
    const T *weight = near.weights.get() + q, *change = near.slopes.get() + q;
    const int terms = K ? K : panel.terms;
#pragma GCC unroll 6
    for (int k = 0; k < terms; ++k, from += P * N * L) {
      const T w = weight[k * near.stride], dw = D ? change[k * near.stride] : T(0);
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) {
          const V row = load<V>(from + (p * N + n) * L);
          value[p][n] += w * row;
          if (D) slope[p][n] += dw * row;
        }
    }
  }
};

// Brings into the cache what an edge that is soon at hand asks of the atom at its other end.
template <class T, int N> inline void fetch(const T* rows, int count, int64_t stride) {
  for (int k = 0; k < count; ++k)
    for (int n = 0; n < N; ++n) __builtin_prefetch(rows + k * stride + n * Vectors<T>::lanes);
}

// Messages to one atom from the edges of columns [first, last): to_scalars (channels,) and to_vectors (3, channels)
// are added to.
template <class T, int N, int P, int K>
void gather(const Nearby<T>& near, const Panel<T>& panel, int64_t first, int64_t last, T* to_scalars, T* to_vectors) {
  using V = typename Vectors<T>::V;
  constexpr int L = Vectors<T>::lanes;
  const int64_t c = panel.channels;
  V scalars[N], x[N], y[N], z[N];
  for (int n = 0; n < N; ++n) scalars[n] = x[n] = y[n] = z[n] = V{};
  for (int64_t q = first; q < last; ++q) {
    const Filtered<T, N, P, K, false> filter(near, panel, q);
    const int64_t j = near.other.get()[q], soon = near.other.get()[q + AHEAD];
    if constexpr (P == 3)
      fetch<T, N>(panel.phi + soon * 3 * c, 3, c), fetch<T, N>(panel.vectors + soon * 3 * c, 3, c);
    const T ux = near.ux.get()[q], uy = near.uy.get()[q], uz = near.uz.get()[q];
    const T* phi = panel.phi + j * P * c;
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      scalars[n] += load<V>(phi + n * L) * filter.value[0][n];
      const V along = load<V>(phi + c + n * L) * filter.value[1][n];
      x[n] += ux * along, y[n] += uy * along, z[n] += uz * along;
      if constexpr (P == 3) {
        const V passed = load<V>(phi + 2 * c + n * L) * filter.value[2][n];
        const T* v = panel.vectors + j * 3 * c + n * L;
        x[n] += load<V>(v) * passed, y[n] += load<V>(v + c) * passed, z[n] += load<V>(v + 2 * c) * passed;
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    store(to_scalars + n * L, V(load<V>(to_scalars + n * L) + scalars[n]));
    store(to_vectors + n * L, V(load<V>(to_vectors + n * L) + x[n]));
    store(to_vectors + c + n * L, V(load<V>(to_vectors + c + n * L) + y[n]));
    store(to_vectors + 2 * c + n * L, V(load<V>(to_vectors + 2 * c + n * L) + z[n]));
  }
}

// Adds to pull (edges, 3) what the message along one edge gives of ∂E/∂r. Over channels, ``stretch`` sums to ∂E/∂d at
// a fixed direction, less what the direction takes of it; x, y, z to ∂E/∂(direction) over the distance.
template <class T, class V> inline void pull_on(const Nearby<T>& near, int64_t q, V stretch, V x, V y, V z, T* pull) {
  T sums[4];
  sum_of_lanes(stretch, x, y, z, sums);
  T* to = pull + int64_t(near.edge.get()[q]) * 3;
  to[0] += near.ux.get()[q] * sums[0] + sums[1];
  to[1] += near.uy.get()[q] * sums[0] + sums[2];
  to[2] += near.uz.get()[q] * sums[0] + sums[3];
}

// Backwards through the messages of one atom j, over the edges that lead to it: grad_phi (3, channels), grad_vectors
// (3, channels) is added to, and so is pull.
template <class T, int N, int K>
void gather_back(const Nearby<T>& near, const Panel<T>& panel, int64_t j, int64_t first, int64_t last, T* grad_phi,
                 T* grad_vectors, T* pull) {
  using V = typename Vectors<T>::V;
  constexpr int L = Vectors<T>::lanes;
  const int64_t c = panel.channels;
  const T *phi = panel.phi + j * 3 * c, *own = panel.vectors + j * 3 * c;
  V to_scalars[N], to_along[N], to_x[N], to_y[N], to_z[N];
  for (int n = 0; n < N; ++n) to_scalars[n] = to_along[n] = to_x[n] = to_y[n] = to_z[n] = V{};
  for (int64_t q = first; q < last; ++q) {
    const Filtered<T, N, 3, K, true> filter(near, panel, q);
    const int64_t i = near.other.get()[q], soon = near.other.get()[q + AHEAD];
    fetch<T, N>(panel.grad_scalars + soon * c, 1, c), fetch<T, N>(panel.grad_vectors + soon * 3 * c, 3, c);
    const T ux = near.ux.get()[q], uy = near.uy.get()[q], uz = near.uz.get()[q], inverse = near.inverse.get()[q];
    V stretch = V{}, x = V{}, y = V{}, z = V{};
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      const T* g = panel.grad_vectors + i * 3 * c + n * L;
      const V gs = load<V>(panel.grad_scalars + i * c + n * L);
      const V gx = load<V>(g), gy = load<V>(g + c), gz = load<V>(g + 2 * c), ahead = ux * gx + uy * gy + uz * gz;
      to_scalars[n] += gs * filter.value[0][n];
      to_along[n] += ahead * filter.value[1][n];
      to_x[n] += gx * filter.value[2][n], to_y[n] += gy * filter.value[2][n], to_z[n] += gz * filter.value[2][n];
      const V f1 = load<V>(phi + c + n * L), along = inverse * f1 * filter.value[1][n];
      const T* v = own + n * L;
      const V passed = load<V>(v) * gx + load<V>(v + c) * gy + load<V>(v + 2 * c) * gz;
      stretch += gs * load<V>(phi + n * L) * filter.slope[0][n] + ahead * (f1 * filter.slope[1][n] - along) +
                 passed * load<V>(phi + 2 * c + n * L) * filter.slope[2][n];
      x += gx * along, y += gy * along, z += gz * along;
    }
    pull_on(near, q, stretch, x, y, z, pull);
  }
  for (int n = 0; n < N; ++n) {
    const V f2 = load<V>(phi + 2 * c + n * L);
    const T* v = own + n * L;
    T* to = grad_vectors + n * L;
    store(grad_phi + n * L, to_scalars[n]);
    store(grad_phi + c + n * L, to_along[n]);
    const V to_passed = load<V>(v) * to_x[n] + load<V>(v + c) * to_y[n] + load<V>(v + 2 * c) * to_z[n];
    store(grad_phi + 2 * c + n * L, to_passed);
    store(to, V(load<V>(to) + f2 * to_x[n]));
    store(to + c, V(load<V>(to + c) + f2 * to_y[n]));
    store(to + 2 * c, V(load<V>(to + 2 * c) + f2 * to_z[n]));
  }
}

// Backwards through the messages to one atom i in the first layer, where φ depends on nothing but elements.
template <class T, int N, int K>
void gather_back_first(const Nearby<T>& near, const Panel<T>& panel, int64_t i, int64_t first, int64_t last, T* pull) {
  using V = typename Vectors<T>::V;
  constexpr int L = Vectors<T>::lanes;
  const int64_t c = panel.channels;
  for (int64_t q = first; q < last; ++q) {
    const Filtered<T, N, 2, K, true> filter(near, panel, q);
    const T ux = near.ux.get()[q], uy = near.uy.get()[q], uz = near.uz.get()[q], inverse = near.inverse.get()[q];
    const T* phi = panel.phi + int64_t(near.other.get()[q]) * 2 * c;
    V stretch = V{}, x = V{}, y = V{}, z = V{};
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      const T* g = panel.grad_vectors + i * 3 * c + n * L;
      const V gs = load<V>(panel.grad_scalars + i * c + n * L);
      const V gx = load<V>(g), gy = load<V>(g + c), gz = load<V>(g + 2 * c);
      const V f1 = load<V>(phi + c + n * L), along = inverse * f1 * filter.value[1][n];
      stretch += gs * load<V>(phi + n * L) * filter.slope[0][n] +
                 (ux * gx + uy * gy + uz * gz) * (f1 * filter.slope[1][n] - along);
      x += gx * along, y += gy * along, z += gz * along;
    }
    pull_on(near, q, stretch, x, y, z, pull);
  }
}

}  // namespace zoo
