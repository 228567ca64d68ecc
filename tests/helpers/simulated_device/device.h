// What the parts of the simulated accelerator share: its devices, its clock, its meters.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <map>
#include <string>
#include <utility>

namespace simulated {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr int DEVICES = 2;

int current_device();
void set_current_device(int index);

// Events, by "kind:name", such as "launch:mm", "wait:item", "copy:to host", "collective:broadcast".
std::map<std::string, int64_t> counts();
void reset_counts();
void count(const std::string& event);
// A kernel goes into the queue of a device, and takes its time there while the host goes on.
void launch(const std::string& kernel, int device);
// The host waits until the queue of a device is empty.
void wait(const std::string& why, int device);
void set_kernel_seconds(double seconds);

c10::Allocator* allocator();
// Bytes in use on a device, and the most that were in use since the last reset.
std::pair<int64_t, int64_t> memory(int device);
void reset_peak(int device);
// An allocation beyond so many bytes of a device raises OutOfMemoryError; below 0, none does.
void limit_memory(int64_t bytes);

void forbid_dtype(c10::ScalarType dtype, bool forbidden);
void check_dtype(c10::ScalarType dtype);

const at::Generator& default_generator(int index);

// The same memory as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& tensor);

void register_hooks();

}  // namespace simulated
