// Operations of the simulated accelerator: the kernels of the CPU, behind the rules of CUDA.
//   * tensors of two devices are refused, apart from numbers (0-dim) of the CPU and indices that lie there
//   * generators of another device are refused, and so are indices of the device into a tensor of the CPU
//   * kernels go into a queue; copies to the host, and what Python needs a value of, wait for it
#include "device.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace simulated {
namespace {

using at::Tensor;
using Size = c10::IntArrayRef;
using SymSize = c10::SymIntArrayRef;
using Dtype = std::optional<c10::ScalarType>;
using Layout = std::optional<c10::Layout>;
using Place = std::optional<c10::Device>;
using Format = std::optional<c10::MemoryFormat>;

const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

bool is_ours(const Tensor& tensor) { return tensor.device().type() == TYPE; }

// ---- memory ----

Tensor empty(Size size, Dtype dtype, Layout, Place place, std::optional<bool>, Format format) {
  const auto kind = c10::dtype_or_default(dtype);
  check_dtype(kind);
  const c10::DeviceGuard guard(c10::device_or_default(place));
  return at::detail::empty_generic(size, allocator(), KEYS, kind, format);
}

Tensor empty_strided(Size size, Size stride, Dtype dtype, Layout, Place place, std::optional<bool>) {
  const auto kind = c10::dtype_or_default(dtype);
  check_dtype(kind);
  const c10::DeviceGuard guard(c10::device_or_default(place));
  return at::detail::empty_strided_generic(size, stride, allocator(), KEYS, kind);
}

// A tensor of a device with the values of one of the CPU.
Tensor on_device(const Tensor& host, c10::Device device) {
  if (!host.defined()) return host;
  check_dtype(host.scalar_type());
  const c10::DeviceGuard guard(device);
  Tensor found =
      at::detail::empty_strided_generic(host.sizes(), host.strides(), allocator(), KEYS, host.scalar_type());
  if (host.numel()) on_host(found).copy_(host);
  return found;
}

Tensor as_strided(const Tensor& self, SymSize size, SymSize stride, std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(self, size, stride, offset);
}
// Memory grows where the tensor lies, whichever device is the current one.
const Tensor& grow(const Tensor& self, Size size, Format format = std::nullopt) {
  const c10::DeviceGuard guard(self.device());
  return at::native::resize_(self, size, format);
}
const Tensor& resize_(const Tensor& self, SymSize size, Format format) {
  return grow(self, C10_AS_INTARRAYREF_SLOW(size), format);
}
Tensor reshape_alias(const Tensor& self, SymSize size, SymSize stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor view(const Tensor& self, SymSize size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }
Tensor& set_tensor(Tensor& self, const Tensor& source) { return at::native::set_tensor_(self, source); }
Tensor& set_storage(Tensor& self, at::Storage source) { return at::native::set_(self, std::move(source)); }
Tensor& set_strided(Tensor& self, at::Storage source, int64_t offset, Size size, Size stride) {
  return at::cpu::set_(self, std::move(source), offset, size, stride);
}

// ---- copies ----

Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  const int device = is_ours(self) ? self.device().index() : to.device().index();
  if (is_ours(self) && is_ours(to)) {
    launch("copy_", device);
  } else {
    count(is_ours(to) ? "copy:to device" : "copy:to host");
    // Pageable memory of the host: only the way to the device can be left to itself.
    if (!(is_ours(to) && non_blocking)) wait("copy", device);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  on_host(to).copy_(on_host(self));
  return to;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  grow(to, self.sizes());
  return copy_from(self, to, false);
}

at::Scalar local_scalar(const Tensor& self) {
  wait("item", self.device().index());
  return at::native::_local_scalar_dense_cpu(on_host(self));
}

// ---- convolutions, which torch leaves to the device ----

void check_together(const Tensor& one, const Tensor& other) {
  TORCH_CHECK(
      !other.defined() || one.device() == other.device(),
      "Expected all tensors to be on the same device, but found at least two devices, ", one.device(), " and ",
      other.device(), "! (convolution)");
}

Tensor convolution(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, Size stride, Size padding, Size dilation,
    bool transposed, Size output_padding, int64_t groups) {
  check_together(x, weight);
  check_together(x, bias.value_or(Tensor()));
  launch("convolution", x.device().index());
  std::optional<Tensor> on_cpu;
  if (bias && bias->defined()) on_cpu = on_host(*bias);
  const auto found = at::convolution(
      on_host(x), on_host(weight), on_cpu, stride, padding, dilation, transposed, output_padding, groups);
  return on_device(found.contiguous(), x.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, Size stride, Size padding, Size dilation,
    bool transposed, Size output_padding, int64_t groups, std::array<bool, 3> mask) {
  check_together(x, gradient);
  check_together(x, weight);
  launch("convolution_backward", x.device().index());  // with respect to the input
  launch("convolution_backward", x.device().index());  // and to the weight
  const std::array<int64_t, 1> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  const auto [of_x, of_weight, of_bias] = at::convolution_backward(
      on_host(gradient), on_host(x), on_host(weight), at::OptionalIntArrayRef(bias), stride, padding, dilation,
      transposed, output_padding, groups, mask);
  const auto back = [&](const Tensor& found) {
    return found.defined() ? on_device(found.contiguous(), x.device()) : found;
  };
  return {back(of_x), back(of_weight), back(of_bias)};
}

// ---- all other operations ----

// Python, or the size of the result, needs values.
const std::set<std::string> WAITING = {
    "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::bincount",
    "aten::_linalg_eigh", "aten::linalg_cholesky_ex", "aten::repeat_interleave"};
const std::set<std::string> BETWEEN_DEVICES = {"aten::_to_copy", "aten::copy_", "aten::is_set_to"};

// One call of an operation: its arguments on the stack, and what they say of devices.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack& stack)
      : schema_(op.schema()),
        stack_(stack),
        size_(schema_.arguments().size()),
        first_(stack.size() - size_),
        indexes_(schema_.name().find("index") != std::string::npos) {
    for (size_t i = 0; i < size_; i++) {
      const auto& value = argument(i);
      if (value.isTensor()) see(value.toTensor());
      else if (value.isTensorList()) for (const Tensor& each : value.toTensorVector()) see(each);
      else if (value.isOptionalTensorList()) for (const auto& each : value.toOptionalTensorVector()) see_index(each);
    }
  }

  void check_devices() {
    const bool of_host = size_ && argument(0).isTensor() && argument(0).toTensor().is_cpu();
    TORCH_CHECK(
        !(indexes_ && of_host && argument(0).toTensor().dim() && device_),
        "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
    TORCH_CHECK(
        !(device_ && other_) || BETWEEN_DEVICES.count(schema_.name()),
        "Expected all tensors to be on the same device, but found at least two devices, ", *device_, " and ",
        other_.value_or(*device_), "! (", schema_.name(), ")");
  }

  // Put tensors and generators of the CPU in the place of those of the device.
  void to_host() {
    for (size_t i = 0; i < size_; i++) {
      auto& value = argument(i);
      if (value.isTensor()) {
        value = alias(value.toTensor());
      } else if (value.isTensorList()) {
        std::vector<Tensor> all;
        for (const Tensor& each : value.toTensorVector()) all.push_back(alias(each));
        value = c10::IValue(all);
      } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<Tensor>> all;
        for (const auto& each : value.toOptionalTensorVector())
          all.push_back(each ? std::optional<Tensor>(alias(*each)) : std::nullopt);
        value = c10::IValue(all);
      } else if (value.isDevice()) {
        if (!device_) device_ = value.toDevice();
        value = c10::Device(at::kCPU);
      } else if (schema_.arguments()[i].name() == "generator") {
        value = host_generator(value);
      }
    }
  }

  void count() const {
    const auto name = schema_.name().substr(schema_.name().find("::") + 2);
    launch(name, index());
    if (WAITING.count(schema_.name()) || (schema_.name() == "aten::index" && masks_)) wait(name, index());
  }

  // Bring sizes, results and the state of the generator back.
  void to_device() {
    if (lent_.defined()) own_.set_state(lent_.get_state());
    at::AutoDispatchBelowADInplaceOrView below;
    for (auto& [host, ours] : aliases_) {
      if (host.sizes() == ours.sizes()) continue;
      grow(ours, host.sizes());
      on_host(ours).copy_(host);
    }
    for (size_t i = stack_.size() - schema_.returns().size(); i < stack_.size(); i++) {
      auto& value = stack_[i];
      if (value.isTensor()) {
        value = result(value.toTensor());
      } else if (value.isTensorList()) {
        std::vector<Tensor> all;
        for (const Tensor& each : value.toTensorVector()) all.push_back(result(each));
        value = c10::IValue(all);
      }
    }
  }

 private:
  c10::IValue& argument(size_t i) { return stack_[first_ + i]; }
  int index() const { return device_ ? device_->index() : current_device(); }

  void see(const Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!is_ours(tensor)) {
      if (tensor.dim()) other_ = tensor.device();
      return;
    }
    if (device_ && *device_ != tensor.device()) other_ = tensor.device();
    if (!device_) device_ = tensor.device();
  }

  void see_index(const std::optional<Tensor>& index) {
    if (!index || !index->defined() || (indexes_ && index->is_cpu())) return;
    see(*index);
    masks_ = masks_ || index->scalar_type() == c10::kBool;
  }

  Tensor alias(const Tensor& tensor) {
    if (!tensor.defined() || !is_ours(tensor)) return tensor;
    for (auto& [host, ours] : aliases_)
      if (ours.is_same(tensor)) return host;
    aliases_.emplace_back(on_host(tensor), tensor);
    return aliases_.back().first;
  }

  c10::IValue host_generator(const c10::IValue& given) {
    own_ = given.isNone() ? default_generator(index()) : given.toGenerator();
    TORCH_CHECK(
        own_.device().type() == TYPE, "Expected a 'sim' device type for generator but found '", own_.device().type(),
        "'");
    lent_ = at::make_generator<at::CPUGeneratorImpl>();
    lent_.set_state(own_.get_state());
    return lent_;
  }

  Tensor result(const Tensor& host) {
    for (auto& [alias, ours] : aliases_)
      if (alias.is_same(host)) return ours;
    return on_device(host, c10::Device(TYPE, static_cast<c10::DeviceIndex>(index())));
  }

  const c10::FunctionSchema& schema_;
  torch::jit::Stack& stack_;
  size_t size_, first_;
  bool indexes_, masks_ = false;
  std::optional<c10::Device> device_, other_;  // of the first tensor of ours, and one that does not go with it
  std::vector<std::pair<Tensor, Tensor>> aliases_;
  at::Generator own_, lent_;
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op, *stack);
  call.check_devices();
  call.to_host();
  call.count();
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.to_device();
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("resize_", resize_);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

}  // namespace
}  // namespace simulated
