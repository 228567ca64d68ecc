// What Python sees of the simulated accelerator, and its process group: that of gloo, for tensors of the device alone.
#include "device.h"

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace simulated {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using Handle = c10::intrusive_ptr<c10d::Work>;

// A collective that has ended: as with NCCL, its outputs lie on the device.
struct Done final : c10d::Work {
  Done(c10d::OpType kind, Tensors outputs) : Work(-1, kind), outputs_(std::move(outputs)) {}
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds) override { return true; }
  void synchronize() override {}
  Tensors result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    std::vector<c10::Device> devices;
    if (!outputs_.empty()) devices.push_back(outputs_[0].device());
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), devices);
    future->markCompleted(c10::IValue(outputs_));
    return future;
  }
  Tensors outputs_;
};

class Group final : public c10d::Backend {
 public:
  Group(int rank, int size, c10::intrusive_ptr<c10d::Backend> host, double seconds)
      : Backend(rank, size),
        host_(std::move(host)),
        options_(c10::make_intrusive<Options>("simccl", std::chrono::milliseconds(static_cast<int64_t>(1e3 * seconds)))) {}

  const std::string getBackendName() const override { return "simccl"; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }

  Handle broadcast(Tensors& tensors, const c10d::BroadcastOptions& how) override {
    auto views = seen(tensors);
    return done("broadcast", c10d::OpType::BROADCAST, tensors, host_->broadcast(views, how));
  }
  Handle allreduce(Tensors& tensors, const c10d::AllreduceOptions& how) override {
    auto views = seen(tensors);
    auto summed = how;
    if (averages(how.reduceOp)) summed.reduceOp = c10d::ReduceOp::SUM;  // gloo has no mean, NCCL has
    auto handle = done("allreduce", c10d::OpType::ALLREDUCE, tensors, host_->allreduce(views, summed));
    if (averages(how.reduceOp)) divide(views);
    return handle;
  }
  Handle allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& how) override {
    for (auto& each : tensors) {
      Tensors one{each};
      allreduce(one, how);
    }
    return c10::make_intrusive<Done>(c10d::OpType::ALLREDUCE_COALESCED, tensors);
  }
  Handle allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& how) override {
    std::vector<Tensors> rooms{seen(outputs.at(0))};
    auto views = seen(inputs);
    return done("allgather", c10d::OpType::ALLGATHER, outputs[0], host_->allgather(rooms, views, how));
  }
  Handle _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& how) override {
    auto room = seen(output), view = seen(input);
    return done("allgather", c10d::OpType::_ALLGATHER_BASE, {output}, host_->_allgather_base(room, view, how));
  }
  Handle allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& how) override {
    for (size_t i = 0; i < outputs.size(); i++) _allgather_base(outputs[i], inputs[i], how);
    return c10::make_intrusive<Done>(c10d::OpType::COALESCED, outputs);
  }
  Handle _reduce_scatter_base(Tensor& output, Tensor& input, const c10d::ReduceScatterOptions& how) override {
    auto room = seen(output), view = seen(input);
    auto summed = how;
    if (averages(how.reduceOp)) summed.reduceOp = c10d::ReduceOp::SUM;
    auto handle = done(
        "reduce_scatter", c10d::OpType::_REDUCE_SCATTER_BASE, {output},
        host_->_reduce_scatter_base(room, view, summed));
    if (averages(how.reduceOp)) divide({room});
    return handle;
  }
  Handle reduce_scatter_tensor_coalesced(
      Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& how) override {
    for (size_t i = 0; i < outputs.size(); i++) _reduce_scatter_base(outputs[i], inputs[i], how);
    return c10::make_intrusive<Done>(c10d::OpType::REDUCE_SCATTER_TENSOR_COALESCED, outputs);
  }
  Handle gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& how) override {
    std::vector<Tensors> rooms;
    for (auto& each : outputs) rooms.push_back(seen(each));
    auto views = seen(inputs);
    return done("gather", c10d::OpType::GATHER, inputs, host_->gather(rooms, views, how));
  }
  Handle scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& how) override {
    std::vector<Tensors> views;
    for (auto& each : inputs) views.push_back(seen(each));
    auto rooms = seen(outputs);
    return done("scatter", c10d::OpType::SCATTER, outputs, host_->scatter(rooms, views, how));
  }
  Handle barrier(const c10d::BarrierOptions&) override {
    return done("barrier", c10d::OpType::BARRIER, {}, host_->barrier(c10d::BarrierOptions()));
  }

 private:
  static bool averages(const c10d::ReduceOp& op) { return op.op_ == c10d::ReduceOp::AVG; }

  Tensor seen(const Tensor& tensor) const {
    TORCH_CHECK(
        tensor.device().type() == TYPE, "No backend type associated with device type ", tensor.device().type());
    return on_host(tensor);
  }
  Tensors seen(const Tensors& tensors) const {
    Tensors found;
    for (const auto& each : tensors) found.push_back(seen(each));
    return found;
  }
  void divide(Tensors views) const {
    at::AutoDispatchBelowADInplaceOrView below;
    for (auto& each : views) {
      if (at::isIntegralType(each.scalar_type(), false)) each.div_(getSize(), "trunc");
      else each.div_(getSize());
    }
  }
  static Handle done(const char* name, c10d::OpType kind, Tensors outputs, const Handle& of_host) {
    simulated::count(std::string("collective:") + name);
    of_host->wait();
    return c10::make_intrusive<Done>(kind, std::move(outputs));
  }

  c10::intrusive_ptr<c10d::Backend> host_;
  c10::intrusive_ptr<Options> options_;
};

}  // namespace
}  // namespace simulated

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  using without_gil = py::call_guard<py::gil_scoped_release>;
  simulated::register_hooks();
  m.attr("DEVICES") = simulated::DEVICES;
  m.def("current_device", &simulated::current_device);
  m.def("set_device", &simulated::set_current_device);
  m.def("counts", &simulated::counts);
  m.def("reset_counts", &simulated::reset_counts);
  m.def("set_kernel_seconds", &simulated::set_kernel_seconds);
  m.def("synchronize", [](int device) { simulated::wait("device", device); }, without_gil());
  m.def("memory", &simulated::memory);
  m.def("reset_peak", &simulated::reset_peak);
  m.def("limit_memory", &simulated::limit_memory);
  m.def("forbid_dtype", &simulated::forbid_dtype);
  m.def("default_generator", [](int index) { return simulated::default_generator(index); });
  // Python finds the class of a backend, and with it the options, as those of NCCL.
  py::class_<simulated::Group, c10d::Backend, c10::intrusive_ptr<simulated::Group>>(m, "Group")
      .def_property_readonly("options", &simulated::Group::getBackendOptions);
  m.def("group", [](int rank, int size, c10::intrusive_ptr<c10d::Backend> host, double seconds) {
    return c10::intrusive_ptr<c10d::Backend>(
        c10::make_intrusive<simulated::Group>(rank, size, std::move(host), seconds));
  });
}
