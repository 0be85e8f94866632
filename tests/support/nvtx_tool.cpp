// An NVTX tool, as NVTX_INJECTION64_PATH names one: writes what it is told to the file that NVTX_TOOL_OUTPUT names, a
// line each: "push THREAD NAME CATEGORY| RANK STEP BUCKET BYTES", "pop THREAD", "start NAME", "end", "thread THREAD
// NAME".
#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtPayload.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

std::mutex mutex;
std::map<std::uint32_t, std::string> categories;

FILE* output() {
  static FILE* file = std::fopen(std::getenv("NVTX_TOOL_OUTPUT"), "w");
  return file;
}

template <class... Values>
void write(const char* format, Values... values) {
  const std::lock_guard lock(mutex);
  std::fprintf(output(), format, values...);
  std::fflush(output());
}

// A domain and a registered string are their own text here.
nvtxDomainHandle_t create_domain(const char* name) { return reinterpret_cast<nvtxDomainHandle_t>(strdup(name)); }
nvtxStringHandle_t register_string(nvtxDomainHandle_t, const char* text) {
  return reinterpret_cast<nvtxStringHandle_t>(strdup(text));
}

void name_category(nvtxDomainHandle_t, std::uint32_t category, const char* name) {
  const std::lock_guard lock(mutex);
  categories[category] = name;
}

const char* text_of(const nvtxEventAttributes_t* event) {
  return reinterpret_cast<const char*>(event->message.registered);
}

int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  if (std::strcmp(reinterpret_cast<const char*>(domain), "tandem") != 0) return 0;
  std::array<std::int64_t, 4> payload{-2, -2, -2, -2};
  if (event->payloadType == NVTX_PAYLOAD_TYPE_EXT) {
    const auto* data = reinterpret_cast<const nvtxPayloadData_t*>(event->payload.ullValue);
    if (data->schemaId == 7 && data->size == sizeof payload) std::memcpy(payload.data(), data->payload, data->size);
  }
  write("push %d %s %s| %ld %ld %ld %ld\n", gettid(), text_of(event), categories[event->category].c_str(), payload[0],
        payload[1], payload[2], payload[3]);
  return 0;
}

int pop(nvtxDomainHandle_t) {
  write("pop %d\n", gettid());
  return 0;
}

nvtxRangeId_t start(nvtxDomainHandle_t, const nvtxEventAttributes_t* event) {
  write("start %s\n", text_of(event));
  return 1;
}

void end(nvtxDomainHandle_t, nvtxRangeId_t) { write("end\n"); }
void name_thread(std::uint32_t thread, const char* name) { write("thread %d %s\n", thread, name); }
std::uint64_t register_schema(nvtxDomainHandle_t, const nvtxPayloadSchemaAttr_t* schema) {
  return schema->numEntries == 4 ? 7 : 0;
}

template <class Function>
void set(NvtxFunctionTable table, int id, Function* function) {
  *table[id] = reinterpret_cast<NvtxFunctionPointer>(function);
}

}  // namespace

extern "C" {

NVTX_DYNAMIC_EXPORT int NVTX_API InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (!callbacks || callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size) == 0) return 0;
  set(table, NVTX_CBID_CORE_NameOsThreadA, name_thread);
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  set(table, NVTX_CBID_CORE2_DomainCreateA, create_domain);
  set(table, NVTX_CBID_CORE2_DomainRegisterStringA, register_string);
  set(table, NVTX_CBID_CORE2_DomainNameCategoryA, name_category);
  set(table, NVTX_CBID_CORE2_DomainRangePushEx, push);
  set(table, NVTX_CBID_CORE2_DomainRangePop, pop);
  set(table, NVTX_CBID_CORE2_DomainRangeStartEx, start);
  set(table, NVTX_CBID_CORE2_DomainRangeEnd, end);
  return 1;
}

NVTX_DYNAMIC_EXPORT int NVTX_API InitializeInjectionNvtxExtension(nvtxExtModuleInfo_t* module) {
  module->segments->functionSlots[NVTX3EXT_CBID_nvtxPayloadSchemaRegister] =
      reinterpret_cast<intptr_t>(register_schema);
  return 1;
}
}
