// Edges in the order in which a kernel walks along them.
#pragma once

#include <limits>

#include "vectors.h"

namespace zoo {

constexpr int ELEMENTS = 119;  // atomic numbers in a table of slots
enum Status { DONE = 0, BAD_INDEX = 1, UNKNOWN_ELEMENT = 2, TOO_LARGE = 3, NO_MEMORY = 4 };

// As in zoo.graph.Graph; slots (ELEMENTS,) the row of an element, or less than zero.
struct Indices {
  int64_t atoms, edges, structures;
  const int64_t *numbers, *slots, *structure, *centers, *neighbors;
};

// Where atoms are: positions (atoms, 3), cells (structures, 3, 3), shifts (edges, 3). In float64, for float32 has four
// digits of the vector of an edge left where coordinates are a thousand Å.
struct Places {
  const double *positions, *cells, *shifts;
};

// From the centre of an edge to the image of its neighbour.
template <class T>
inline void span(const Places& at, int64_t i, int64_t j, int64_t structure, int64_t edge, T* r) {
  const double *here = at.positions + 3 * i, *there = at.positions + 3 * j, *cell = at.cells + 9 * structure;
  const double* s = at.shifts + 3 * edge;
  for (int k = 0; k < 3; ++k)
    r[k] = T(there[k] - here[k] + (s[0] * cell[k] + s[1] * cell[3 + k] + s[2] * cell[6 + k]));
}

// The edges shorter than the cutoff, by their centre, and as they lead to an atom, both in the order of their giving.
struct Lists {
  int64_t edges = 0;                        // of those given, how many are shorter
  double shortest = 0;                      // Å, of them; infinite where there is none
  Buffer<int32_t> element;                  // (atoms,) rows of elements
  Buffer<int32_t> own, in;                  // (atoms + 1,) where the edges of an atom begin: its own, and to it
  Buffer<int32_t> given, center, neighbor;  // (edges,) by centre: the place where it was given, its ends
  Buffer<int32_t> incoming;                 // (edges,) by neighbour: the place by centre

  Status sort(const Indices& asked, const Places& at, double cutoff) {
    if (asked.edges > INT32_MAX - 64 || asked.atoms > INT32_MAX - 64) return TOO_LARGE;
    Status status = look_up(asked);
    if (status == DONE) status = choose(asked, at, cutoff);
    if (status != DONE) return status;
    count(asked);
    int32_t *starts = own.get(), *starts_in = in.get(), *from = given.resize(edges);
    for (int64_t k = 0; k < edges; ++k) from[starts[asked.centers[near_.get()[k]] + 1]++] = near_.get()[k];
    int32_t *i = center.resize(edges), *j = neighbor.resize(edges), *to = incoming.resize(edges);
    for (int64_t a = 0; a < asked.atoms; ++a)
      for (int32_t e = starts[a]; e < starts[a + 1]; ++e) {
        i[e] = int32_t(a), j[e] = int32_t(asked.neighbors[from[e]]);
        to[starts_in[j[e] + 1]++] = e;
      }
    return DONE;
  }

 private:
  Buffer<int32_t> near_;  // (edges,) their places among those given

  Status look_up(const Indices& asked) {
    int32_t* rows = element.resize(asked.atoms);
    for (int64_t a = 0; a < asked.atoms; ++a) {
      const int64_t number = asked.numbers[a], structure = asked.structure[a];
      if (structure < 0 || structure >= asked.structures) return BAD_INDEX;
      if (number < 0 || number >= ELEMENTS || asked.slots[number] < 0) return UNKNOWN_ELEMENT;
      rows[a] = int32_t(asked.slots[number]);
    }
    return DONE;
  }

  // An edge whose length is not finite stays, to be seen in what comes out.
  Status choose(const Indices& asked, const Places& at, double cutoff) {
    const double limit = cutoff * cutoff, largest = std::numeric_limits<double>::max();
    double least = std::numeric_limits<double>::infinity(), r[3];
    int32_t* near = near_.resize(asked.edges);
    edges = 0;
    for (int64_t e = 0; e < asked.edges; ++e) {
      const int64_t i = asked.centers[e], j = asked.neighbors[e];
      if (i < 0 || i >= asked.atoms || j < 0 || j >= asked.atoms) return BAD_INDEX;
      span(at, i, j, asked.structure[i], e, r);
      const double square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      least = std::min(least, square);
      near[edges] = int32_t(e);
      edges += !(square >= limit && square <= largest);
    }
    shortest = std::sqrt(least);
    return DONE;
  }

  // Edges of an atom begin at own[atom + 1] and in[atom + 1], which move on as edges are placed: one place up.
  void count(const Indices& asked) {
    int32_t *starts = own.zeros(asked.atoms + 2), *starts_in = in.zeros(asked.atoms + 2);
    for (int64_t k = 0; k < edges; ++k) {
      const int32_t e = near_.get()[k];
      ++starts[asked.centers[e] + 2], ++starts_in[asked.neighbors[e] + 2];
    }
    for (int64_t a = 2; a < asked.atoms + 2; ++a) starts[a] += starts[a - 1], starts_in[a] += starts_in[a - 1];
  }
};

}  // namespace zoo
