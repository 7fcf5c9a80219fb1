// How the CUDA softmax loss shares out a tensor of this type, shape, layout and address modulo 16, and in which banks of shared
// memory rows are read, for tests.
#include "cuda/softmax_loss_plan.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "cuda/softmax_loss_work.h"

using namespace fcn_fast;

namespace {

// type, n, c, h, w, channels_last
Map map_of(const int64_t* n, int64_t address) { return {reinterpret_cast<void*>(address), Type(n[0]), n[1], n[2], n[3], n[4], n[5] != 0}; }

// Where the accesses of a pixel in its row begin, in order, and how many classes each takes; every class once, else none.
template <class T> std::vector<int> accesses(const cuda::Work<cuda::arithmetic_t<T>>& w, int64_t pixel, int& pack) {
  alignas(16) T row[256];
  std::iota(row, row + w.classes, T(0));
  std::vector<int> begins, found(w.classes);
  cuda::in_order<T>(w, pixel, [&]<bool WHOLE, int PACK>(const cuda::Order<WHOLE, PACK>& order) {
    pack = PACK;
    cuda::in_groups<cuda::kTogether>(order, [&](int32_t j, auto number, auto whole) {
      const cuda::Group<T, 1, PACK, number.value> group(row, 1, w.classes, order, j, whole);
      for (int k = 0; k < std::min<int>(number.value, group.count); ++k) {
        const int c = int(group.at[k / PACK].at[k % PACK]);
        if (c == group.class_of(k)) ++found[c];
        if (k % PACK == 0) begins.push_back(c);
      }
    });
  });
  const bool each_once = std::all_of(found.begin(), found.end(), [](int times) { return times == 1; });
  return each_once ? begins : std::vector<int>{};
}

// Of an access of all lanes, the first of which owns this pixel: the most words in one bank of those that are read at once.
template <class T> int words_in_a_bank(int classes, int64_t image_pixels, int64_t first) {
  cuda::Work<cuda::arithmetic_t<T>> w{};
  w.classes = classes;
  w.image_pixels = image_pixels;
  int pack = 0;
  std::vector<std::vector<int>> of_lane;
  for (int lane = 0; lane < cuda::kWarp; ++lane) of_lane.push_back(accesses<T>(w, first + lane, pack));
  const int bytes = pack * int(sizeof(T)), at_once = std::min(cuda::kWarp, cuda::kBanks * 4 / bytes);
  int most = 0;
  for (size_t i = 0; i < of_lane[0].size(); ++i)
    for (int begin = 0; begin < cuda::kWarp; begin += at_once) {
      std::set<int> words[cuda::kBanks];
      for (int lane = begin; lane < begin + at_once; ++lane) {
        if (of_lane[lane].size() != of_lane[0].size()) return 0;
        const int at = (lane * classes + of_lane[lane][i]) * int(sizeof(T));
        for (int word = at / 4; word <= (at + bytes - 1) / 4; ++word) words[word % cuda::kBanks].insert(word);
      }
      for (const auto& bank : words) most = std::max(most, int(bank.size()));
    }
  return most;
}

}  // namespace

// The most words in a bank that an access to rows meets, of all accesses; 0 if not every class is read just once.
extern "C" int conflicts(int size, int classes, int64_t image_pixels, int64_t first) {
  if (size == 2) return words_in_a_bank<uint16_t>(classes, image_pixels, first);
  return size == 4 ? words_in_a_bank<float>(classes, image_pixels, first) : words_in_a_bank<double>(classes, image_pixels, first);
}

extern "C" void plan(const int64_t* n, int64_t address, int64_t* out) {
  const cuda::Plan p(map_of(n, address));
  const int64_t numbers[] = {int64_t(p.share), p.pack, p.threads, p.shared, p.images, p.pixels, p.tiles, p.blocks};
  for (int i = 0; i < 8; ++i) out[i] = numbers[i];
}

// Of forward and gradient in one, with so much shared memory.
extern "C" void tiles(const int64_t* n, int64_t address, int64_t most_shared, int64_t* out) {
  const cuda::Tiles p(map_of(n, address), most_shared);
  const int64_t numbers[] = {int64_t(p.share), p.fit, p.pack, p.threads, p.shared, p.tiles, p.blocks};
  for (int i = 0; i < 7; ++i) out[i] = numbers[i];
}
