// Enough of CUDA to run the kernels of a .cu file on a CPU: blocks one after the other, a block's threads as coroutines, each
// of which runs until it waits for its warp or its block. In which order they run is nothing that a kernel may rely on, and
// so for a test to choose. What CUDA leaves undefined or refuses is an error that cudaGetLastError tells.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // there is one block at a time

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  int64_t x;
  dim3(int64_t n) : x(n) {}
};
inline uint4 threadIdx;
inline struct {
  unsigned x;
} blockIdx, blockDim, gridDim;

struct __half {
  _Float16 value;
};
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half(float x) { return {_Float16(x)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  if (x != x) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to the nearest, of two as near to the even one
}

namespace emulator {

constexpr int kWarp = 32, kThreads = 1024, kStack = 64 << 10, kShared = 48 << 10, kMostShared = 99 << 10, kGuard = 64;
enum class State { runs, at_warp, at_block, done };

struct Copy {
  void* to;
  const void* from;
  size_t size;
};

struct Thread {
  ucontext_t begin;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool begun;
  State state;
  int exchanges;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> copies;
};

// 0: threads and blocks in ascending order; 1: descending; else shuffled, anew each time, from this seed.
inline int order = 0;
inline std::string error;
inline std::vector<Thread> threads(kThreads);
inline jmp_buf scheduler;
inline std::function<void()> kernel;
inline std::vector<uint4> shared;
inline int most_shared = kShared;  // of the next launch
// What the threads say to their warp: two of each, so that nobody speaks again before all have heard.
inline char said[2][kThreads][16];
inline int said_tag[2][kThreads];

inline Thread& self() { return threads[threadIdx.x]; }

// Jumps between stacks: swapcontext would make a system call each time.
inline void wait(State state) {
  self().state = state;
  if (!_setjmp(self().place)) _longjmp(scheduler, 1);
}

inline void go_on(Thread& thread) {
  if (_setjmp(scheduler)) return;
  if (thread.begun) _longjmp(thread.place, 1);
  thread.begun = true;
  setcontext(&thread.begin);
}

// Ends the launch: nothing runs any more.
inline void fail(const std::string& why) {
  if (error.empty())
    error = why + " (thread " + std::to_string(threadIdx.x) + " of block " + std::to_string(blockIdx.x) + ")";
  wait(State::done);
}

inline void run_thread() {
  kernel();
  for (;;) wait(State::done);
}

inline std::vector<int64_t> in_order(int64_t count) {
  static std::mt19937 random;
  static int seed = 0;
  std::vector<int64_t> found(count);
  for (int64_t i = 0; i < count; ++i) found[i] = order == 1 ? count - 1 - i : i;
  if (order > 1) {
    if (seed != order) random.seed(seed = order);
    std::shuffle(found.begin(), found.end(), random);
  }
  return found;
}

inline void run_block(int64_t block, int count, size_t shared_bytes) {
  blockIdx.x = unsigned(block);
  shared.assign((shared_bytes + kGuard + 15) / 16, uint4{~0u, ~0u, ~0u, ~0u});  // nobody has written there: NaN
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    getcontext(&thread.begin);
    thread.begin.uc_stack.ss_sp = thread.stack.get();
    thread.begin.uc_stack.ss_size = kStack;
    thread.begin.uc_link = nullptr;
    makecontext(&thread.begin, run_thread, 0);
    thread.begun = false;
    thread.state = State::runs;
    thread.exchanges = 0;
    thread.uncommitted.clear();
    thread.copies.clear();
  }
  for (;;) {
    for (const int64_t i : in_order(count)) {
      if (threads[i].state != State::runs) continue;
      threadIdx.x = unsigned(i);
      go_on(threads[i]);
      if (!error.empty()) return;
    }
    bool all_done = true, all_wait = true, goes_on = false;
    for (int i = 0; i < count; ++i) {
      all_done &= threads[i].state == State::done;
      all_wait &= threads[i].state == State::done || threads[i].state == State::at_block;
    }
    if (all_done) break;
    for (int warp = 0; warp < count; warp += kWarp) {
      bool together = true;
      for (int i = warp; i < warp + kWarp; ++i) together &= threads[i].state == State::at_warp;
      for (int i = warp; i < warp + kWarp; ++i)
        if (together || (all_wait && threads[i].state == State::at_block)) {
          threads[i].state = State::runs;
          goes_on = true;
        }
    }
    if (!goes_on) return void(error = "threads wait for each other for ever");
  }
  const char* const end = reinterpret_cast<const char*>(shared.data()) + shared_bytes;
  for (int i = 0; i < kGuard; ++i)
    if (end[i] != char(0xff)) return void(error = "shared memory is written past its end");
}

template <class F> void launch(dim3 grid, int count, size_t shared_bytes, void*, F&& body) {
  if (grid.x < 1 || grid.x > INT32_MAX || count < 1 || count > kThreads || count % kWarp || int(shared_bytes) > most_shared) {
    error = "invalid configuration";  // whole warps are ours to keep to, the rest is CUDA's
    return;
  }
  kernel = std::forward<F>(body);
  most_shared = kShared;
  blockDim.x = count;
  gridDim.x = unsigned(grid.x);
  for (const int64_t block : in_order(grid.x))
    if (error.empty()) run_block(block, count, shared_bytes);
}

// Says a value to the warp, all of whose lanes must say one of the same kind; which side of ``said`` holds them.
template <class T> int say(uint32_t mask, const T& value, int tag) {
  static_assert(sizeof(T) <= sizeof said[0][0]);
  if (mask != ~0u) fail("a part of a warp");
  const int side = self().exchanges++ % 2, mine = threadIdx.x, first = mine / kWarp * kWarp;
  std::memcpy(said[side][mine], &value, sizeof value);
  said_tag[side][mine] = tag * 64 + int(sizeof value);
  wait(State::at_warp);
  for (int i = first; i < first + kWarp; ++i)
    if (said_tag[side][i] != said_tag[side][mine]) fail("lanes of a warp wait for different things");
  return side;
}
template <class T> T heard(int side, int lane) {
  T value;
  std::memcpy(&value, said[side][threadIdx.x / kWarp * kWarp + lane], sizeof value);
  return value;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::State::at_block); }
template <class T> T __shfl_xor_sync(uint32_t mask, T value, int distance) {
  return emulator::heard<T>(emulator::say(mask, value, distance), (threadIdx.x ^ distance) % emulator::kWarp);
}
inline int __any_sync(uint32_t mask, int value) {
  const int side = emulator::say(mask, value, 0);
  int any = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) any |= emulator::heard<int>(side, lane);
  return any;
}

// Copies are done when they are waited for, and not before.
inline void __pipeline_memcpy_async(void* to, const void* from, size_t size) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size) emulator::fail("a copy is not aligned");
  emulator::self().uncommitted.push_back({to, from, size});
}
inline void __pipeline_commit() {
  emulator::self().copies.push_back(std::move(emulator::self().uncommitted));
  emulator::self().uncommitted.clear();
}
inline void __pipeline_wait_prior(size_t but) {
  auto& copies = emulator::self().copies;
  for (; copies.size() > but; copies.pop_front())
    for (const auto& copy : copies.front()) std::memcpy(copy.to, copy.from, copy.size);
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaFailure };
enum { cudaMemcpyDeviceToHost, cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize };
inline void cudaGetDevice(int* device) { *device = 0; }
inline void cudaDeviceGetAttribute(int* value, int, int) { *value = emulator::kMostShared; }
template <class F> void cudaFuncSetAttribute(F, int, int bytes) {
  if (bytes > emulator::kMostShared) emulator::error = "more shared memory than there is";
  emulator::most_shared = std::max(bytes, emulator::kShared);
}
inline cudaError_t cudaGetLastError() { return emulator::error.empty() ? cudaSuccess : cudaFailure; }
inline const char* cudaGetErrorString(cudaError_t) { return emulator::error.c_str(); }
inline void cudaMemcpyAsync(void* to, const void* from, size_t size, int, cudaStream_t) { std::memcpy(to, from, size); }
inline void cudaStreamSynchronize(cudaStream_t) {}
