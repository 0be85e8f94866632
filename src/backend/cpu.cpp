#include "backend/backend.h"
#include "comm/shared_memory_communicator.h"
#include "core/cgroup_limit.h"

namespace tandem {
namespace {

// CPU ranks wait for nothing but each other, which the token ends.
class CpuSession final : public BackendSession {
 public:
  explicit CpuSession(comm::RankGroup& group) : group_(group) {}
  std::unique_ptr<comm::Communicator> make_communicator(int rank) override {
    return comm::make_shared_memory_communicator(group_, rank);
  }
  LaunchEnd cancel() override { return {}; }
  LaunchEnd finish() override { return {}; }

 private:
  comm::RankGroup& group_;
};

class CpuBackend final : public Backend {
 public:
  c10::DeviceType type() const override { return c10::kCPU; }
  std::string name() const override { return "CPU"; }

  int device_count() const override { return usable_cores(); }

  c10::Device device(int) const override { return c10::Device(c10::kCPU); }

  std::unique_ptr<BackendSession> begin(comm::RankGroup& group, std::vector<c10::Device>, Transport,
                                        const WarningSink&) const override {
    return std::make_unique<CpuSession>(group);
  }
};

}  // namespace

std::shared_ptr<const Backend> cpu_backend() { return std::make_shared<CpuBackend>(); }

}  // namespace tandem
