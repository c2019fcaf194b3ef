// Edges in the order in which a kernel walks along them.
#pragma once

#include "vectors.h"

namespace zoo {

constexpr int ELEMENTS = 119;  // atomic numbers in a table of slots
enum Status { DONE = 0, BAD_INDEX = 1, UNKNOWN_ELEMENT = 2, TOO_LARGE = 3, NO_MEMORY = 4 };

// As in zoo.graph.Graph; slots (ELEMENTS,) the row of an element, or less than zero.
struct Indices {
  int64_t atoms, edges, structures;
  const int64_t *numbers, *slots, *structure, *centers, *neighbors;
};

// Edges by their centre, and those that lead to an atom, both in the order in which they were given.
struct Lists {
  Buffer<int32_t> element;                  // (atoms,) rows of elements
  Buffer<int32_t> own, in;                  // (atoms + 1,) where the edges of an atom begin: its own, and to it
  Buffer<int32_t> given, center, neighbor;  // (edges,) by centre: the place where it was given, its ends
  Buffer<int32_t> incoming;                 // (edges,) by neighbour: the place by centre

  Status sort(const Indices& asked) {
    if (asked.edges > INT32_MAX - 64 || asked.atoms > INT32_MAX - 64) return TOO_LARGE;
    const Status status = count(asked);
    if (status != DONE) return status;
    int32_t *starts = own.get(), *starts_in = in.get(), *from = given.resize(asked.edges);
    for (int64_t e = 0; e < asked.edges; ++e) from[starts[asked.centers[e] + 1]++] = int32_t(e);
    int32_t *i = center.resize(asked.edges), *j = neighbor.resize(asked.edges), *to = incoming.resize(asked.edges);
    for (int64_t a = 0; a < asked.atoms; ++a)
      for (int32_t e = starts[a]; e < starts[a + 1]; ++e) {
        i[e] = int32_t(a), j[e] = int32_t(asked.neighbors[from[e]]);
        to[starts_in[j[e] + 1]++] = e;
      }
    return DONE;
  }

 private:
  // Edges of an atom begin at own[atom + 1] and in[atom + 1], which move on as edges are placed: one place up.
  Status count(const Indices& asked) {
    const int64_t atoms = asked.atoms;
    int32_t *rows = element.resize(atoms), *starts = own.zeros(atoms + 2), *starts_in = in.zeros(atoms + 2);
    for (int64_t a = 0; a < atoms; ++a) {
      const int64_t number = asked.numbers[a], structure = asked.structure[a];
      if (structure < 0 || structure >= asked.structures) return BAD_INDEX;
      if (number < 0 || number >= ELEMENTS || asked.slots[number] < 0) return UNKNOWN_ELEMENT;
      rows[a] = int32_t(asked.slots[number]);
    }
    for (int64_t e = 0; e < asked.edges; ++e) {
      const int64_t i = asked.centers[e], j = asked.neighbors[e];
      if (i < 0 || i >= atoms || j < 0 || j >= atoms) return BAD_INDEX;
      ++starts[i + 2], ++starts_in[j + 2];
    }
    for (int64_t a = 2; a < atoms + 2; ++a) starts[a] += starts[a - 1], starts_in[a] += starts_in[a - 1];
    return DONE;
  }
};

}  // namespace zoo
