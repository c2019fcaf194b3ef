// Energies of atoms, forces and virial of a PaiNN whose weights stand still; the derivative is written by hand.
//
// An atom is computed by one thread, in the order of its edges, from what all threads have finished, so the result
// has the same bits with any number of threads. Channels are padded with zeros to whole vectors of the machine.

#include <unistd.h>

#include <mutex>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

#include "dense.h"
#include "edges.h"
#include "steps.h"

namespace zoo {

constexpr int BLOCK = 16;  // atoms that one thread takes at a time
constexpr int LEAST = 8;   // atoms that are worth a thread

// OpenMP's threads are not there in a process that is forked, which would wait for them for ever: it is one thread.
static const pid_t loaded_by = getpid();

template <class T> struct Layer {
  Dense<T> phi_in, phi_out, mix, gate_in, gate_out;
  Dense<T> phi_in_back, phi_out_back, mix_back, gate_in_back, gate_out_back;  // their transposes
  Filters<T> filters;
};

// What is asked, as in zoo.graph.Graph, and where the answers go.
template <class T> struct Call {
  Indices indices;
  Places places;
  T *energies, *forces, *virial;
  double* shortest;
  int threads;
};

// What a thread works with; of the atoms of a block.
template <class T> struct Scratch {
  Nearby<T> near;
  Buffer<T> thin, pair, wide, vectors, grad_scalars, grad_vectors;  // 1, 2, 3, 3, 1, 3 channels an atom
};

template <class T> class Kernel {
  using V = typename Vectors<T>::V;
  static constexpr int L = Vectors<T>::lanes;

 public:
  Kernel(const Shape& shape, const T* weights) : shape_(shape), c_(padded<T>(shape.channels)) {
    const int64_t c = shape.channels, half = c / 2 + 1;
    auto next = [&weights](int64_t count) {
      const T* from = weights;
      weights += count;
      return from;
    };
    const T* embedding = next(shape.elements * c);
    T* rows = embedding_.zeros(shape.elements * c_);
    for (int64_t element = 0; element < shape.elements; ++element)
      std::copy_n(embedding + element * c, c, rows + element * c_);
    layers_ = std::vector<Layer<T>>(shape.layers);
    for (int l = 0; l < shape.layers; ++l) read_layer(layers_[l], l ? 3 : 2, next);
    const Axis all{1, int(c)}, part{1, int(half)};
    const T *matrix = next(half * c), *bias = next(half);
    readout_.pack(matrix, bias, all, part, false);
    readout_back_.pack(matrix, nullptr, part, all, true);
    std::copy_n(next(half), half, last_.zeros(readout_.outputs));
    last_bias_ = *next(1);
    find_element_phi();
  }

  Status run(const Call<T>& call) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    const Status status = lists_.sort(call.indices, call.places, shape_.cutoff);
    if (status != DONE) return status;
    *call.shortest = lists_.shortest;
    call_ = call, atoms_ = call.indices.atoms;
    call_.threads = int(std::min<int64_t>(call.threads, std::max<int64_t>(atoms_ / LEAST, 1)));
    if (getpid() != loaded_by) call_.threads = 1;
    reserve();
    steps_.prepare(2 * shape_.layers + 2);
#pragma omp parallel num_threads(call_.threads) if (call_.threads > 1)
    passes();
    sum_virial();
    return DONE;
  }

 private:
  template <class Next> void read_layer(Layer<T>& layer, int parts, Next& next) {
    const int n = shape_.channels;
    const int64_t c = n;
    auto read = [&next](Dense<T>& there, Dense<T>& back, Axis in, Axis out, bool biased) {
      const int64_t inputs = in.parts * in.channels, outputs = out.parts * out.channels;
      const T* matrix = next(inputs * outputs);
      there.pack(matrix, biased ? next(outputs) : nullptr, in, out, false);
      back.pack(matrix, nullptr, out, in, true);
    };
    read(layer.phi_in, layer.phi_in_back, {1, n}, {1, n}, true);
    read(layer.phi_out, layer.phi_out_back, {1, n}, {parts, n}, true);
    layer.filters.build(next(parts * c * shape_.radials), parts, shape_);
    read(layer.mix, layer.mix_back, {1, n}, {2, n}, false);
    read(layer.gate_in, layer.gate_in_back, {2, n}, {1, n}, true);
    read(layer.gate_out, layer.gate_out_back, {1, n}, {3, n}, true);
  }

  // φ of the first layer depends on nothing but the element.
  void find_element_phi() {
    const int rows = shape_.elements;
    Buffer<T> hidden;
    hidden.resize(rows * c_);
    layers_[0].phi_in.apply(embedding_.get(), c_, rows, hidden.get(), c_);
    silu(hidden.get(), hidden.get(), rows * c_);
    layers_[0].phi_out.apply(hidden.get(), c_, rows, element_phi_.resize(rows * 2 * c_), 2 * c_);
  }

  void reserve() {
    const int64_t edges = lists_.edges, layers = shape_.layers, inner = layers - 1, threads = call_.threads;
    const int64_t least = (atoms_ + BLOCK - 1) / BLOCK, size = atoms_ * c_;
    blocks_ = (least + threads - 1) / threads * threads;
    block_ = blocks_ ? (atoms_ + blocks_ - 1) / blocks_ : 0;
    int64_t most = 0;
    for (int64_t a = 0; a < atoms_; a += block_)
      for (const auto* start : {lists_.own.get(), lists_.in.get()})
        most = std::max<int64_t>(most, start[std::min(a + block_, atoms_)] - start[a]);
    records_.resize(RECORD * edges), pull_.resize(3 * edges), strain_.resize(6 * atoms_);
    scalars_.resize(size), grad_scalars_.resize(2 * size), grad_vectors_.resize(6 * size);
    vectors_.resize(inner * 3 * size), phi_.resize(inner * 3 * size), phi_hidden_.resize(inner * size);
    mixed_.resize(layers * 6 * size), gate_hidden_.resize(layers * size), gates_.resize(layers * 3 * size);
    if (int64_t(scratch_.size()) < threads) scratch_ = std::vector<Scratch<T>>(threads);
    for (auto& mine : scratch_) {
      mine.near.reserve(most, shape_.terms());
      for (auto* one : {&mine.thin, &mine.grad_scalars}) one->resize(block_ * c_);
      for (auto* one : {&mine.wide, &mine.vectors, &mine.grad_vectors}) one->resize(block_ * 3 * c_);
      mine.pair.resize(block_ * 2 * c_);
    }
  }

  template <class F> void each_block(int64_t step, F compute) {
    Scratch<T>& mine = scratch_[omp_get_thread_num()];
    steps_.share(step, blocks_, [&](int64_t block) {
      const int64_t first = std::min(block * block_, atoms_), last = std::min(first + block_, atoms_);
      if (first < last) compute(first, last, mine);
    });
  }

  // Each step rests on what all blocks of those before it have done.
  void passes() {
    using S = Scratch<T>;
    int64_t step = 0;
    each_block(step++, [this](int64_t first, int64_t last, S&) {
      const int32_t* own = lists_.own.get();
      std::fill(pull_.get() + 3 * int64_t(own[first]), pull_.get() + 3 * int64_t(own[last]), T(0));
      measure(call_.places, call_.indices.structure, lists_, own[first], own[last], shape_, records_.get());
    });
    for (int l = 0; l < shape_.layers; ++l)
      each_block(step++, [this, l](int64_t first, int64_t last, S& mine) { forward(l, first, last, mine); });
    for (int l = shape_.layers - 1; l > 0; --l)
      each_block(step++, [this, l](int64_t first, int64_t last, S& mine) { backward(l, first, last, mine); });
    each_block(step++, [this](int64_t first, int64_t last, S& mine) { backward_first(first, last, mine); });
    each_block(step++, [this](int64_t first, int64_t last, S&) { add_reactions(first, last); });
  }

  // The edges [edges[begin], edges[end]), or those of that number themselves, and whose row stands at their other end.
  void look_around(Nearby<T>& near, const int32_t* edges, int64_t begin, int64_t end, const int32_t* ends,
                   bool by_element) {
    near.take(records_.get(), edges ? edges + begin : nullptr, begin, end - begin);
    for (int64_t q = 0; q < end - begin; ++q) {
      const int32_t other = ends[near.edge.get()[q]];
      near.other.get()[q] = by_element ? lists_.element.get()[other] : other;
    }
    near.weigh(shape_, end - begin);
  }

  Panel<T> panel(int l, int64_t start) const {
    const int64_t size = atoms_ * c_, inner = std::max(l - 1, 0) * 3 * size;
    const T* phi = l ? phi_.get() + inner : element_phi_.get();
    return {layers_[l].filters.panel(int(start)), phi + start, vectors_.get() + inner + start, grad_scalars(l) + start,
            grad_vectors(l) + start, c_, shape_.terms()};
  }

  T* grad_scalars(int l) const { return grad_scalars_.get() + (l & 1) * atoms_ * c_; }
  T* grad_vectors(int l) const { return grad_vectors_.get() + (l & 1) * atoms_ * 3 * c_; }

  // Calls with the number of vectors of each panel and the number of terms, both known to the compiler; 0 is any.
  template <class F> void each_panel(F compute) const {
    std::integral_constant<int, 1> one;
    std::integral_constant<int, 2> two;
    std::integral_constant<int, SPLINE> spline;
    std::integral_constant<int, 0> any;
    for (int64_t start = 0; start < c_; start += 2 * L)
      if (c_ - start >= 2 * L)
        shape_.knots ? compute(start, two, spline) : compute(start, two, any);
      else
        shape_.knots ? compute(start, one, spline) : compute(start, one, any);
  }

  // A layer for atoms [first, last): messages, update, and what the next layer or the gradient begins with.
  void forward(int l, int64_t first, int64_t last, Scratch<T>& mine) {
    const int64_t n = last - first, size = atoms_ * c_;
    const int32_t* own = lists_.own.get();
    T *s = scalars_.get() + first * c_, *v = mine.vectors.get();
    look_around(mine.near, nullptr, own[first], own[last], lists_.neighbor.get(), l == 0);
    if (l == 0) {
      for (int64_t a = first; a < last; ++a)
        std::copy_n(embedding_.get() + lists_.element.get()[a] * c_, c_, s + (a - first) * c_);
      std::fill_n(v, n * 3 * c_, T(0));
    } else {
      std::copy_n(vectors_.get() + (l - 1) * 3 * size + first * 3 * c_, n * 3 * c_, v);
    }
    each_panel([&](int64_t start, auto width, auto terms) {
      constexpr int N = decltype(width)::value, K = decltype(terms)::value;
      const Panel<T> part = panel(l, start);
      for (int64_t a = first; a < last; ++a) {
        const int64_t begin = own[a] - own[first], end = own[a + 1] - own[first];
        T *to_s = s + (a - first) * c_ + start, *to_v = v + (a - first) * 3 * c_ + start;
        l ? gather<T, N, 3, K>(mine.near, part, begin, end, to_s, to_v)
          : gather<T, N, 2, K>(mine.near, part, begin, end, to_s, to_v);
      }
    });
    update(l, first, n, mine);
    l + 1 < shape_.layers ? next_phi(l, first, n, mine) : read_out(first, n, mine);
  }

  // What an atom makes of itself. mixed (atoms, 3, left and right, channels), gates (atoms, 3, channels)
  void update(int l, int64_t first, int64_t n, Scratch<T>& mine) {
    const Layer<T>& layer = layers_[l];
    const int64_t size = atoms_ * c_;
    const bool final = l + 1 == shape_.layers;  // its vectors are asked by nobody
    T *mixed = mixed_.get() + (l * size + first * c_) * 6, *gates = gates_.get() + (l * size + first * c_) * 3;
    T *hidden = gate_hidden_.get() + l * size + first * c_, *s = scalars_.get() + first * c_, *v = mine.vectors.get();
    T* next = final ? nullptr : vectors_.get() + (l * size + first * c_) * 3;
    layer.mix.apply(v, c_, 3 * n, mixed, 2 * c_);
    for (int64_t a = 0; a < n; ++a)
      for (int64_t k = 0; k < c_; k += L) {
        const T* right = mixed + a * 6 * c_ + c_ + k;
        store(mine.pair.get() + a * 2 * c_ + k, load<V>(s + a * c_ + k));
        store(mine.pair.get() + a * 2 * c_ + c_ + k, V(soft_length(right) - T(1)));
      }
    layer.gate_in.apply(mine.pair.get(), 2 * c_, n, hidden, c_);
    silu(hidden, mine.thin.get(), n * c_);
    layer.gate_out.apply(mine.thin.get(), c_, n, gates, 3 * c_, false, 0, final ? 2 * c_ : 0);
    for (int64_t a = 0; a < n; ++a)
      for (int64_t k = 0; k < c_; k += L) {
        const T *gate = gates + a * 3 * c_ + k, *left = mixed + a * 6 * c_ + k;
        store(s + a * c_ + k, V(load<V>(s + a * c_ + k) + load<V>(gate) + load<V>(gate + c_) * product(left)));
        for (int64_t axis = 0; !final && axis < 3; ++axis) {
          const int64_t at = (a * 3 + axis) * c_ + k;
          store(next + at, V(load<V>(v + at) + load<V>(left + axis * 2 * c_) * load<V>(gate + 2 * c_)));
        }
      }
  }

  // sqrt(|right|² + 1), at a channel; over the axes
  V soft_length(const T* right) const {
    V sum = T(1) - V{};
    for (int axis = 0; axis < 3; ++axis) sum += load<V>(right + axis * 2 * c_) * load<V>(right + axis * 2 * c_);
    for (int lane = 0; lane < L; ++lane) sum[lane] = std::sqrt(sum[lane]);
    return sum;
  }

  // left · right, at a channel
  V product(const T* left) const {
    V sum = V{};
    for (int axis = 0; axis < 3; ++axis) sum += load<V>(left + axis * 2 * c_) * load<V>(left + axis * 2 * c_ + c_);
    return sum;
  }

  void next_phi(int l, int64_t first, int64_t n, Scratch<T>& mine) {
    const Layer<T>& layer = layers_[l + 1];
    const int64_t size = atoms_ * c_;
    T* hidden = phi_hidden_.get() + l * size + first * c_;
    layer.phi_in.apply(scalars_.get() + first * c_, c_, n, hidden, c_);
    silu(hidden, mine.thin.get(), n * c_);
    layer.phi_out.apply(mine.thin.get(), c_, n, phi_.get() + (l * size + first * c_) * 3, 3 * c_);
  }

  // The energies of atoms, and back to the last message.
  void read_out(int64_t first, int64_t n, Scratch<T>& mine) {
    const int64_t h = readout_.outputs;
    T* hidden = mine.thin.get();
    readout_.apply(scalars_.get() + first * c_, c_, n, hidden, h);
    for (int64_t a = 0; a < n; ++a) {
      V sum = V{};
      for (int64_t k = 0; k < h; k += L) {
        const V x = load<V>(hidden + a * h + k), s = sigmoid<T>(x), weight = load<V>(last_.get() + k);
        sum += weight * x * s;
        store(hidden + a * h + k, V(T(shape_.scale) * weight * s * (T(1) + x * (T(1) - s))));
      }
      T sums[4];
      sum_of_lanes(sum, sum, sum, sum, sums);
      call_.energies[first + a] = T(shape_.scale) * (sums[0] + last_bias_);
    }
    readout_back_.apply(hidden, h, n, mine.grad_scalars.get(), c_);
    std::fill_n(mine.grad_vectors.get(), n * 3 * c_, T(0));
    update_back(shape_.layers - 1, first, n, mine);
  }

  // From gradients after an update, in scratch, to those before it, where neighbours find them.
  void update_back(int l, int64_t first, int64_t n, Scratch<T>& mine) {
    const Layer<T>& layer = layers_[l];
    const int64_t size = atoms_ * c_;
    const bool final = l + 1 == shape_.layers;
    T *mixed = mixed_.get() + (l * size + first * c_) * 6, *to_gates = mine.wide.get(), *to_pair = mine.pair.get();
    const T *gs = mine.grad_scalars.get(), *gv = mine.grad_vectors.get();
    const T *gates = gates_.get() + (l * size + first * c_) * 3, *hidden = gate_hidden_.get() + l * size + first * c_;
    for (int64_t a = 0; a < n; ++a)
      for (int64_t k = 0; k < c_; k += L) {
        const T *left = mixed + a * 6 * c_ + k, *g = gv + a * 3 * c_ + k;
        const V slope = load<V>(gs + a * c_ + k);
        V ahead = V{};
        for (int64_t axis = 0; axis < 3; ++axis) ahead += load<V>(g + axis * c_) * load<V>(left + axis * 2 * c_);
        T* to = to_gates + a * 3 * c_ + k;
        store(to, slope), store(to + c_, V(slope * product(left))), store(to + 2 * c_, ahead);
      }
    layer.gate_out_back.apply(to_gates, 3 * c_, n, mine.thin.get(), c_, false, final ? 2 * c_ : 0);
    times_silu_slope(hidden, mine.thin.get(), n * c_);
    layer.gate_in_back.apply(mine.thin.get(), c_, n, to_pair, 2 * c_);
    for (int64_t a = 0; a < n; ++a)
      for (int64_t k = 0; k < c_; k += L) {
        T *left = mixed + a * 6 * c_ + k, *right = left + c_;
        const T *gate = gates + a * 3 * c_ + k, *g = gv + a * 3 * c_ + k;
        const V before = load<V>(gs + a * c_ + k), to_product = before * load<V>(gate + c_);
        const V to_right = load<V>(to_pair + a * 2 * c_ + c_ + k) / soft_length(right);
        store(grad_scalars(l) + (first + a) * c_ + k, V(before + load<V>(to_pair + a * 2 * c_ + k)));
        for (int64_t axis = 0; axis < 3; ++axis, left += 2 * c_, right += 2 * c_, g += c_) {
          const V was_left = load<V>(left), was_right = load<V>(right);
          const V turned = final ? V{} : V(load<V>(g) * load<V>(gate + 2 * c_));
          store(left, V(to_product * was_right + turned));
          store(right, V(to_product * was_left + to_right * was_right));
        }
      }
    T* to_vectors = grad_vectors(l) + first * 3 * c_;
    std::copy_n(gv, n * 3 * c_, to_vectors);
    layer.mix_back.apply(mixed, 2 * c_, 3 * n, to_vectors, c_, true);
  }

  // Backwards through the messages of layer l > 0, its φ, and the update before it.
  void backward(int l, int64_t first, int64_t last, Scratch<T>& mine) {
    const Layer<T>& layer = layers_[l];
    const int64_t n = last - first, size = atoms_ * c_;
    const int32_t* in = lists_.in.get();
    T *to_phi = mine.wide.get(), *gs = mine.grad_scalars.get(), *gv = mine.grad_vectors.get();
    look_around(mine.near, lists_.incoming.get(), in[first], in[last], lists_.center.get(), false);
    std::copy_n(grad_scalars(l) + first * c_, n * c_, gs);
    std::copy_n(grad_vectors(l) + first * 3 * c_, n * 3 * c_, gv);
    each_panel([&](int64_t start, auto width, auto terms) {
      const Panel<T> part = panel(l, start);
      for (int64_t a = first; a < last; ++a)
        gather_back<T, decltype(width)::value, decltype(terms)::value>(
            mine.near, part, a, in[a] - in[first], in[a + 1] - in[first], to_phi + (a - first) * 3 * c_ + start,
            gv + (a - first) * 3 * c_ + start, pull_.get());
    });
    layer.phi_out_back.apply(to_phi, 3 * c_, n, mine.thin.get(), c_);
    times_silu_slope(phi_hidden_.get() + (l - 1) * size + first * c_, mine.thin.get(), n * c_);
    layer.phi_in_back.apply(mine.thin.get(), c_, n, gs, c_, true);
    update_back(l - 1, first, n, mine);
  }

  // Backwards through the first messages; then ∂E/∂r of own edges is complete: their share of forces and virial.
  void backward_first(int64_t first, int64_t last, Scratch<T>& mine) {
    const int32_t* own = lists_.own.get();
    look_around(mine.near, nullptr, own[first], own[last], lists_.neighbor.get(), true);
    each_panel([&](int64_t start, auto width, auto terms) {
      const Panel<T> part = panel(0, start);
      for (int64_t a = first; a < last; ++a)
        gather_back_first<T, decltype(width)::value, decltype(terms)::value>(
            mine.near, part, a, own[a] - own[first], own[a + 1] - own[first], pull_.get());
    });
    for (int64_t a = first; a < last; ++a) {
      T force[3] = {0, 0, 0};
      double strain[6] = {0, 0, 0, 0, 0, 0};
      for (int64_t e = own[a]; e < own[a + 1]; ++e) {
        const T *g = pull_.get() + 3 * e, *u = records_.get() + e * RECORD;
        for (int k = 0; k < 3; ++k) force[k] += g[k], strain[k] += double(u[3]) * u[k] * g[k];
        for (int k = 0; k < 3; ++k) {
          const int p = k == 2 ? 1 : 0, q = k == 0 ? 1 : 2;  // xy, xz, yz
          strain[3 + k] += 0.5 * u[3] * (double(u[p]) * g[q] + double(u[q]) * g[p]);
        }
      }
      std::copy_n(force, 3, call_.forces + 3 * a);
      std::copy_n(strain, 6, strain_.get() + 6 * a);
    }
  }

  void add_reactions(int64_t first, int64_t last) {
    for (int64_t a = first; a < last; ++a)
      for (int64_t q = lists_.in.get()[a]; q < lists_.in.get()[a + 1]; ++q)
        for (int k = 0; k < 3; ++k) call_.forces[3 * a + k] -= pull_.get()[3 * int64_t(lists_.incoming.get()[q]) + k];
  }

  void sum_virial() {
    std::vector<double> sums(6 * call_.indices.structures, 0.0);
    for (int64_t a = 0; a < atoms_; ++a)
      for (int k = 0; k < 6; ++k) sums[6 * call_.indices.structure[a] + k] += strain_.get()[6 * a + k];
    const int place[9] = {0, 3, 4, 3, 1, 5, 4, 5, 2};
    for (int64_t s = 0; s < call_.indices.structures; ++s)
      for (int k = 0; k < 9; ++k) call_.virial[9 * s + k] = T(sums[6 * s + place[k]]);
  }

  const Shape shape_;
  const int64_t c_;  // channels, padded
  std::mutex mutex_;
  std::vector<Layer<T>> layers_;
  Dense<T> readout_, readout_back_;
  Buffer<T> embedding_, element_phi_, last_;
  T last_bias_ = 0;

  Call<T> call_{};
  int64_t atoms_ = 0, blocks_ = 0, block_ = 0;
  Steps steps_;
  std::vector<Scratch<T>> scratch_;
  Lists lists_;
  Buffer<T> records_, pull_;               // (edges, RECORD), (edges, 3) ∂E/∂r
  Buffer<double> strain_;                  // (atoms, 6) ∂E/∂ε
  Buffer<T> scalars_;                      // (atoms, channels)
  Buffer<T> vectors_, phi_, phi_hidden_;   // (layers - 1, atoms, 3, 3 or 1 channels), as layers after the first begin
  Buffer<T> mixed_, gate_hidden_, gates_;  // (layers, atoms, 6, 1 or 3 channels)
  Buffer<T> grad_scalars_, grad_vectors_;  // (2, atoms, 1 or 3 channels), layers in turn
};

template <class T> void* create(const int64_t* sizes, const double* numbers, const T* weights) {
  try {
    const auto size = [sizes](int k) { return int(sizes[k]); };
    const std::vector<double> frequencies(numbers + 3, numbers + 3 + sizes[3]);
    return new Kernel<T>(
        {size(0), size(1), size(2), size(3), size(4), numbers[0], numbers[1], numbers[2], frequencies}, weights);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

template <class T> int run(void* kernel, const Call<T>* call) {
  try {
    return static_cast<Kernel<T>*>(kernel)->run(*call);
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
}

}  // namespace zoo

#define ZOO_PAINN(T)                                                                          \
  void* painn_create_##T(const int64_t* sizes, const double* numbers, const T* weights) {     \
    return zoo::create(sizes, numbers, weights);                                              \
  }                                                                                           \
  int painn_run_##T(void* kernel, const zoo::Call<T>* call) { return zoo::run(kernel, call); } \
  void painn_free_##T(void* kernel) { delete static_cast<zoo::Kernel<T>*>(kernel); }

extern "C" {
ZOO_PAINN(float)
ZOO_PAINN(double)
}
