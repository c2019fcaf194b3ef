// Linear layers of few rows: products of matrices in registers, as fast as the machine's own library.
#pragma once

#include "vectors.h"

namespace zoo {

constexpr int RUN = 32;  // products that are summed before they meet the rest of a sum: shorter sums lose less

struct Axis {
  int parts, channels;
};

// A linear layer, its weights in panels of two vectors of outputs: (panel, inputs, outputs of the panel).
template <class T> struct Dense {
  int inputs = 0, outputs = 0;
  Buffer<T> weights, bias;

  // from a matrix (outputs, inputs) as PyTorch has it, or from its transpose
  void pack(const T* matrix, const T* offsets, Axis in, Axis out, bool transpose) {
    const int in_pad = padded<T>(in.channels), out_pad = padded<T>(out.channels);
    inputs = in.parts * in_pad;
    outputs = out.parts * out_pad;
    T* to = weights.zeros(int64_t(inputs) * outputs);
    for (int q = 0; q < out.parts * out.channels; ++q)
      for (int p = 0; p < in.parts * in.channels; ++p) {
        const int row = p / in.channels * in_pad + p % in.channels;
        const int column = q / out.channels * out_pad + q % out.channels;
        const int64_t here = int64_t(q) * in.parts * in.channels + p, there = int64_t(p) * out.parts * out.channels + q;
        to[place(row, column)] = matrix[transpose ? there : here];
      }
    T* shift = bias.zeros(outputs);
    for (int q = 0; offsets && q < out.parts * out.channels; ++q)
      shift[q / out.channels * out_pad + q % out.channels] = offsets[q];
  }

  int64_t place(int row, int column) const {
    constexpr int panel = 2 * Vectors<T>::lanes;
    const int start = column / panel * panel, width = std::min(panel, outputs - start);
    return int64_t(start) * inputs + int64_t(row) * width + (column - start);
  }

  // c (rows, columns) = a (rows, depth) @ weights + bias, or += a @ weights; depth and columns may stop short
  void apply(const T* a, int stride_a, int rows, T* c, int stride_c, bool add = false, int depth = 0,
             int columns = 0) const {
    constexpr int lanes = Vectors<T>::lanes, panel = 2 * lanes;
    depth = depth ? depth : inputs;
    columns = columns ? columns : outputs;
    for (int column = 0; column < columns; column += panel)
      for (int start = 0; start < depth; start += RUN) {
        const bool full = outputs - column >= panel;
        const int some = std::min(RUN, depth - start);
        const T* w = weights.get() + int64_t(column) * inputs + int64_t(start) * (full ? panel : lanes);
        for (int row = 0; row < rows; row += TILE_ROWS) {
          T* to = c + int64_t(row) * stride_c + column;
          const T *from = a + int64_t(row) * stride_a + start, *base = add || start ? to : bias.get() + column;
          const int stride_base = add || start ? stride_c : 0, left = std::min(TILE_ROWS, rows - row);
          if (full)
            tiles<TILE_ROWS, 2>(left, w, some, from, stride_a, base, stride_base, to, stride_c);
          else
            tiles<TILE_ROWS, 1>(left, w, some, from, stride_a, base, stride_base, to, stride_c);
        }
      }
  }

 private:
  using V = typename Vectors<T>::V;

  // c (M rows, N vectors) = base + a @ w, of fewer rows if there are fewer
  template <int M, int N>
  static void tiles(int rows, const T* w, int depth, const T* a, int stride_a, const T* base, int stride_base, T* c,
                    int stride_c) {
    if constexpr (M > 1)
      if (rows < M) return tiles<M - 1, N>(rows, w, depth, a, stride_a, base, stride_base, c, stride_c);
    constexpr int lanes = Vectors<T>::lanes;
    V sums[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sums[m][n] = V{};
    for (int k = 0; k < depth; ++k, w += N * lanes) {
      V factors[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) factors[n] = load<V>(w + n * lanes);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sums[m][n] += a[m * int64_t(stride_a) + k] * factors[n];
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const V before = load<V>(base + m * int64_t(stride_base) + n * lanes);
        store(c + m * int64_t(stride_c) + n * lanes, V(before + sums[m][n]));
      }
  }
};

}  // namespace zoo
