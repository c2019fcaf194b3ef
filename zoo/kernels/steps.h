// Work in steps that several threads share.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace zoo {

constexpr int PATIENCE = 4000;  // looks at what others do before the processor is offered to someone else

// A step ends when its parts are done, not when all threads have come: one that the machine keeps waiting keeps nobody
// waiting, unless it waits amid a part.
class Steps {
 public:
  void prepare(int64_t steps) { std::vector<Step>(steps).swap(steps_); }

  // Called by each thread; returns when all parts of this step are done.
  template <class F> void share(int64_t step, int64_t parts, F work) {
    Step& here = steps_[step];
    for (int64_t part; (part = here.taken.fetch_add(1)) < parts; here.done.fetch_add(1)) work(part);
    for (int tries = 0; here.done.load() < parts;)
      if (++tries > PATIENCE) std::this_thread::yield();
  }

 private:
  struct alignas(64) Step {
    std::atomic<int64_t> taken{0}, done{0};
  };
  std::vector<Step> steps_;
};

}  // namespace zoo
