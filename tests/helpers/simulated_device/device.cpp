// An accelerator in the memory of the host: two devices, each with a queue of kernels, a meter of memory, a generator.
#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <vector>

namespace simulated {
namespace {

using Clock = std::chrono::steady_clock;

thread_local int current = 0;

struct Clockwork {
  std::mutex mutex;
  std::map<std::string, int64_t> counts;
  std::chrono::duration<double> kernel{0.0};
  std::array<Clock::time_point, DEVICES> busy_until{};
};

Clockwork& clockwork() {
  static Clockwork found;
  return found;
}

struct Memory {
  std::mutex mutex;
  std::unordered_map<void*, std::pair<int, int64_t>> held;  // device and bytes of each allocation
  std::array<int64_t, DEVICES> used{}, peak{};
  int64_t limit = -1;
};

Memory& meter() {
  static auto* found = new Memory();  // tensors may outlive what ends with the process
  return *found;
}

void release(void* memory) {
  if (!memory) return;
  {
    std::lock_guard<std::mutex> guard(meter().mutex);
    auto found = meter().held.find(memory);
    if (found != meter().held.end()) {
      meter().used[found->second.first] -= found->second.second;
      meter().held.erase(found);
    }
  }
  std::free(memory);
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const int device = current;
    const c10::Device place(TYPE, static_cast<c10::DeviceIndex>(device));
    if (!bytes) return {nullptr, nullptr, &release, place};
    std::lock_guard<std::mutex> guard(meter().mutex);
    auto& used = meter().used[device];
    TORCH_CHECK_WITH(
        OutOfMemoryError,
        meter().limit < 0 || used + static_cast<int64_t>(bytes) <= meter().limit,
        "SIM out of memory. Tried to allocate ", bytes, " bytes beside ", used, " of ", meter().limit);
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    TORCH_CHECK(memory, "the host has no memory left for ", bytes, " bytes");
    meter().held[memory] = {device, static_cast<int64_t>(bytes)};
    used += static_cast<int64_t>(bytes);
    meter().peak[device] = std::max(meter().peak[device], used);
    return {memory, memory, &release, place};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Allocator the_allocator;
REGISTER_ALLOCATOR(TYPE, &the_allocator);

// Streams and events are those of one queue for each device: all is in order, and an event waits for all before it.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  c10::Device getDevice() const override { return c10::Device(TYPE, static_cast<c10::DeviceIndex>(current)); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < DEVICES, "invalid device ordinal: there are ", DEVICES, " simulated devices");
    uncheckedSetDevice(device);
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  c10::Stream stream_of(c10::Device device) const { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getStream(c10::Device device) const override { return stream_of(device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream_of(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return stream_of(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return stream_of(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream_of(stream.device()); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& stream) const override { wait("stream", stream.device_index()); }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = this_event();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override { wait("event", current); }
  void synchronizeDevice(const c10::DeviceIndex index) const override { wait("device", index < 0 ? current : index); }
  static void* this_event() {
    static char event;
    return &event;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(c10::DeviceIndex index) {
    device_ = c10::Device(TYPE, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current); }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto before = getCurrentDevice();
    set_current_device(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Generator>(static_cast<c10::DeviceIndex>(index < 0 ? current : index));
  }
  at::Device getDeviceFromPtr(void*) const override {
    return c10::Device(TYPE, static_cast<c10::DeviceIndex>(current));
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    const c10::DeviceIndex before = exchangeDevice(storage.device().index());
    auto fresh = the_allocator.allocate(bytes);
    exchangeDevice(before);
    if (storage.data() && bytes) std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    auto* held = storage.unsafeGetStorageImpl();
    held->set_data_ptr_noswap(std::move(fresh));
    held->set_nbytes(bytes);
  }
};

std::set<c10::ScalarType>& forbidden_dtypes() {
  static std::set<c10::ScalarType> found;
  return found;
}

}  // namespace

int current_device() { return current; }

void set_current_device(int index) {
  TORCH_CHECK(index < DEVICES, "invalid device ordinal: there are ", DEVICES, " simulated devices");
  if (index >= 0) current = index;
}

std::map<std::string, int64_t> counts() {
  std::lock_guard<std::mutex> guard(clockwork().mutex);
  return clockwork().counts;
}

void reset_counts() {
  std::lock_guard<std::mutex> guard(clockwork().mutex);
  clockwork().counts.clear();
}

void count(const std::string& event) {
  std::lock_guard<std::mutex> guard(clockwork().mutex);
  clockwork().counts[event]++;
}

void launch(const std::string& kernel, int device) {
  auto& all = clockwork();
  std::lock_guard<std::mutex> guard(all.mutex);
  all.counts["launch:" + kernel]++;
  if (all.kernel.count() <= 0) return;
  auto& until = all.busy_until[device < 0 ? current : device];
  until = std::max(until, Clock::now()) + std::chrono::duration_cast<Clock::duration>(all.kernel);
}

void wait(const std::string& why, int device) {
  Clock::time_point until;
  {
    std::lock_guard<std::mutex> guard(clockwork().mutex);
    clockwork().counts["wait:" + why]++;
    until = clockwork().busy_until[device < 0 ? current : device];
  }
  std::this_thread::sleep_until(until);
}

void set_kernel_seconds(double seconds) {
  std::lock_guard<std::mutex> guard(clockwork().mutex);
  clockwork().kernel = std::chrono::duration<double>(seconds);
}

c10::Allocator* allocator() { return &the_allocator; }

std::pair<int64_t, int64_t> memory(int device) {
  std::lock_guard<std::mutex> guard(meter().mutex);
  return {meter().used[device], meter().peak[device]};
}

void reset_peak(int device) {
  std::lock_guard<std::mutex> guard(meter().mutex);
  meter().peak[device] = meter().used[device];
}

void limit_memory(int64_t bytes) {
  std::lock_guard<std::mutex> guard(meter().mutex);
  meter().limit = bytes;
}

void forbid_dtype(c10::ScalarType dtype, bool forbidden) {
  if (forbidden) forbidden_dtypes().insert(dtype);
  else forbidden_dtypes().erase(dtype);
}

void check_dtype(c10::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      !forbidden_dtypes().count(dtype),
      "Cannot convert a SIM Tensor to ", dtype, " dtype as the SIM framework doesn't support ", dtype);
}

const at::Generator& default_generator(int index) {
  static const auto all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < DEVICES; i++) made.push_back(at::make_generator<Generator>(static_cast<c10::DeviceIndex>(i)));
    return made;
  }();
  return all.at(index < 0 ? current : index);
}

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != TYPE) return tensor;
  if (tensor.numel() == 0)
    return at::detail::empty_strided_cpu(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

void register_hooks() {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
}

}  // namespace simulated
