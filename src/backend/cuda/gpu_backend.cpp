#include "backend/cuda/gpu_backend.h"

#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "backend/cores.h"
#include "backend/cuda/small_all_reduce.h"
#include "comm/nccl/communicator.h"
#include "comm/peer_memory.h"
#include "tandem/core/error.h"

namespace tandem::cuda {
namespace {

constexpr int kSharedDevices = 23000;  // NCCL's first version that takes several ranks on one device, if asked to

class GpuSession final : public BackendSession {
 public:
  GpuSession(std::shared_ptr<Module> module, comm::RankGroup& group, std::vector<c10::Device> devices,
             std::vector<std::string> names, bool with_nccl, bool with_peers, WarningSink warn)
      : module_(std::move(module)),
        group_(group),
        devices_(std::move(devices)),
        marks_(group.world_size(), c10::kCUDA),
        with_peers_(with_peers),
        warn_(std::move(warn)) {
    if (with_nccl)
      team_ = std::make_shared<comm::nccl::Team>(std::shared_ptr<comm::nccl::Api>(module_, &module_->nccl()), group_,
                                                 std::move(names));
  }

  std::unique_ptr<comm::Communicator> make_communicator(int rank) override {
    const c10::Device device = device_of(rank);
    std::unique_ptr<comm::Communicator> peers;
    if (with_peers_ && all_reach_each_other(rank)) {
      peers = comm::make_peer_memory_communicator(*module_, marks_, group_, rank, device);
      if (!moves_bytes(*peers, group_, device)) {
        peers.reset();
        if (team_ && rank == 0 && warn_)
          warn_(
              "what GPUs write into each other's memory does not arrive, though the driver allows it; small "
              "all-reduces go through NCCL, as large ones do");
      }
    }
    if (!team_) return peers ? std::move(peers) : throw no_way();
    std::unique_ptr<comm::nccl::NcclCommunicator> nccl;
    {
      const KeepCores cores;  // NCCL moves the thread that calls it, and before 2.30 not always back
      nccl = comm::nccl::make_communicator(team_, *module_, group_, rank, device);
    }
    if (peers) {
      const std::size_t bytes = faster_up_to(*peers, *nccl, group_, device);
      if (bytes > 0) nccl->reduce_small_with(std::move(peers), bytes);
    }
    return nccl;
  }

  LaunchEnd cancel() override { return team_ ? team_->abort() : LaunchEnd{}; }
  LaunchEnd finish() override { return team_ ? team_->finish() : LaunchEnd{}; }

 private:
  c10::Device device_of(int rank) const { return devices_[static_cast<std::size_t>(rank - group_.place().first_rank)]; }

  // Collective, because all must go one way.
  bool all_reach_each_other(int rank) {
    bool mine = true;
    for (const c10::Device peer : devices_)
      mine = module_->enable_peer_access(device_of(rank).index(), peer.index()) && mine;
    return all_agree(group_, rank, mine);
  }

  static CollectiveError no_way() {
    return CollectiveError(
        "these ranks can only exchange data through each other's memory, which these GPUs cannot reach; use a GPU a "
        "rank, and Transport::automatic or nccl");
  }

  const std::shared_ptr<Module> module_;
  comm::RankGroup& group_;
  const std::vector<c10::Device> devices_;  // of this process's ranks
  comm::PeerMarks marks_;
  const bool with_peers_;
  const WarningSink warn_;
  std::shared_ptr<comm::nccl::Team> team_;  // null: ranks reach each other without NCCL
};

class GpuBackend final : public Backend {
 public:
  explicit GpuBackend(std::shared_ptr<Module> module) : module_(std::move(module)), facts_(module_->devices()) {
    if (facts_.empty()) throw ConfigError("no GPU is usable: CUDA shows none to this process; use CPU ranks");
    module_->on_out_of_memory(&OutOfMemoryWatch::tell);
  }

  c10::DeviceType type() const override { return c10::kCUDA; }
  std::string name() const override { return "GPU"; }
  int device_count() const override { return static_cast<int>(facts_.size()); }
  c10::Device device(int index) const override { return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)}; }

  std::vector<int> cores_near(int index) const override {
    return cores_of_pci_device(facts_.at(static_cast<std::size_t>(index)).pci_bus_id);
  }

  std::string identity(int index) const override { return facts_.at(static_cast<std::size_t>(index)).pci_bus_id; }

  std::unique_ptr<Graph> make_graph() const override { return module_->make_graph(); }

  std::unique_ptr<BackendSession> begin(comm::RankGroup& group, std::vector<c10::Device> devices, Transport transport,
                                        const WarningSink& warn) const override {
    const bool shared = std::set(devices.begin(), devices.end(), before).size() < devices.size();
    if (transport == Transport::nccl && shared) check_takes_shared_devices();
    const bool over_nodes = group.place().nodes > 1;
    if (over_nodes && (transport == Transport::peer_memory || shared))
      throw ConfigError(
          "GPUs of several machines exchange data through NCCL, with a GPU a rank; use Transport::automatic or nccl");
    const bool with_nccl = transport == Transport::nccl || over_nodes ||
                           (transport == Transport::automatic && !shared && devices.size() > 1);
    if (with_nccl && devices.size() > 1) check_launches_do_not_block();
    std::vector<std::string> names;
    for (const c10::Device device : devices) names.push_back(name_of(device));
    return std::make_unique<GpuSession>(module_, group, std::move(devices), std::move(names), with_nccl,
                                        transport != Transport::nccl && !over_nodes, warn);
  }

 private:
  static bool before(c10::Device a, c10::Device b) { return a.index() < b.index(); }

  std::string name_of(c10::Device device) const {
    return "GPU " + std::to_string(device.index()) + ", " + facts_[static_cast<std::size_t>(device.index())].name;
  }

  void check_takes_shared_devices() const {
    const int version = module_->nccl().version();
    if (version < kSharedDevices)
      throw ConfigError("NCCL " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
                        " takes one rank a GPU; give each rank its own, or leave the transport to Tandem");
  }

  // A launch then waits for its kernel, which waits for the other ranks' launches.
  static void check_launches_do_not_block() {
    const char* const blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
    if (blocking && std::string_view(blocking) != "0")
      throw ConfigError(
          "CUDA_LAUNCH_BLOCKING is set, with which several ranks of one process wait for each other for ever; "
          "unset it, or look for the error with one rank");
  }

  const std::shared_ptr<Module> module_;
  const std::vector<DeviceFacts> facts_;
};

}  // namespace

std::shared_ptr<const Backend> make_gpu_backend(std::shared_ptr<Module> module) {
  return std::make_shared<GpuBackend>(std::move(module));
}

}  // namespace tandem::cuda
