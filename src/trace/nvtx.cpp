#include "trace/nvtx.h"

#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtPayload.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <string>
#include <utility>

#include "trace/events.h"

namespace tandem::trace::nvtx {
namespace {

nvtxPayloadSchemaEntry_t entry(const char* name, std::size_t offset) {
  nvtxPayloadSchemaEntry_t made{};
  made.type = NVTX_PAYLOAD_ENTRY_TYPE_INT64;
  made.name = name;
  made.offset = offset;
  return made;
}

// What a listening tool was told once.
struct Tool {
  nvtxDomainHandle_t domain = nvtxDomainCreateA("tandem");  // null: no tool listens
  std::array<nvtxStringHandle_t, kEvents.size()> names{};
  nvtxStringHandle_t profile{};
  std::uint64_t schema = 0;  // of payloads; 0: a tool that knows none

  Tool() {
    if (!domain) return;
    for (std::size_t i = 0; i < kEvents.size(); ++i) names[i] = nvtxDomainRegisterStringA(domain, kEvents[i].name);
    for (std::size_t i = 0; i < kKinds; ++i)
      nvtxDomainNameCategoryA(domain, static_cast<std::uint32_t>(i + 1), kKindProperties[i].name);
    profile = nvtxDomainRegisterStringA(domain, "profile");
    register_schema();
  }

  void register_schema() {
    const std::array entries{entry("rank", offsetof(Payload, rank)), entry("step", offsetof(Payload, step)),
                             entry("bucket", offsetof(Payload, bucket)), entry("bytes", offsetof(Payload, bytes))};
    nvtxPayloadSchemaAttr_t attributes{};
    attributes.fieldMask = NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_NAME | NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_TYPE |
                           NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_ENTRIES | NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_NUM_ENTRIES |
                           NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_STATIC_SIZE;
    attributes.name = "tandem range";
    attributes.type = NVTX_PAYLOAD_SCHEMA_TYPE_STATIC;
    attributes.entries = entries.data();
    attributes.numEntries = entries.size();
    attributes.payloadStaticSize = sizeof(Payload);
    schema = nvtxPayloadSchemaRegister(domain, &attributes);
  }
};

// Never destroyed: threads may still end ranges while the process ends.
const Tool& tool() {
  static const Tool& tool = *new Tool;
  return tool;
}

}  // namespace

bool is_attached() noexcept { return tool().domain != nullptr; }

void push(Event event, const Payload& payload) {
  const Kind kind = kind_of(event);
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.category = static_cast<std::uint32_t>(kind) + 1;  // 0 is no category
  attributes.colorType = NVTX_COLOR_ARGB;
  attributes.color = properties_of(kind).colour;
  attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
  attributes.message.registered = tool().names[static_cast<std::size_t>(event)];
  const nvtxPayloadData_t data{tool().schema, sizeof payload, &payload};
  if (tool().schema != 0) {
    attributes.payloadType = NVTX_PAYLOAD_TYPE_EXT;
    attributes.reserved0 = 1;  // payloads
    attributes.payload.ullValue = reinterpret_cast<std::uintptr_t>(&data);
  } else {
    attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
    attributes.payload.llValue = event == Event::all_reduce ? payload.bytes : payload.step;
  }
  nvtxDomainRangePushEx(tool().domain, &attributes);
}

void pop() { nvtxDomainRangePop(tool().domain); }

void name_thread(int rank) {
  nvtxNameOsThreadA(static_cast<std::uint32_t>(gettid()), ("rank " + std::to_string(rank)).c_str());
}

void step_begins(std::int64_t step, Steps capture) {
  // Launches may follow each other; each is profiled, by its rank 0.
  thread_local nvtxRangeId_t open = 0;
  if (step == capture.first && step <= capture.last) {
    nvtxEventAttributes_t attributes{};
    attributes.version = NVTX_VERSION;
    attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
    attributes.message.registered = tool().profile;
    open = nvtxDomainRangeStartEx(tool().domain, &attributes);
  } else if (open != 0 && step == capture.last + 1) {
    nvtxDomainRangeEnd(tool().domain, std::exchange(open, 0));
  }
}

}  // namespace tandem::trace::nvtx
