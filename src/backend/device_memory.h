// The memory that LibTorch's allocator keeps of a device.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>

namespace tandem {

/// Gives back to the device what the allocator keeps for tensors to come. Nothing for the CPU, and for allocators that
/// keep nothing.
inline void free_device_memory(c10::Device device) {
  if (device.is_cpu()) return;
  if (auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type())))
    allocator->emptyCache();
}

}  // namespace tandem
