// SPDX-License-Identifier: Apache-2.0
#include "fake_ort.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fake {

using namespace bcq::ort;

int64_t alive = 0;
int64_t fail_in = -1;
size_t largest_block = size_t(1) << 30;

namespace {

OrtStatus* status(OrtErrorCode code, const char* message) {
  ++alive;
  return new OrtStatus{code, message};
}

// Null, or the failure that was asked for at this call.
OrtStatus* planned() {
  if (fail_in < 0 || fail_in-- > 0) return nullptr;
  return status(ORT_FAIL, "planned failure");
}

#define MAY_FAIL \
  if (OrtStatus* failure = planned()) return failure

OrtStatus* copy_text(const std::string& text, char* out, size_t* size) {
  const size_t needed = text.size() + 1;
  if (out != nullptr && *size < needed) return status(ORT_INVALID_ARGUMENT, "buffer too small");
  if (out != nullptr) std::memcpy(out, text.c_str(), needed);
  *size = needed;
  return nullptr;
}

// One function per row of slots.inc, under the same name.
OrtStatus* CreateStatus(OrtErrorCode code, const char* message) { return status(code, message); }
const char* GetErrorMessage(const OrtStatus* s) { return s->message.c_str(); }
void ReleaseStatus(OrtStatus* s) {
  --alive;
  delete s;
}

OrtStatus* CreateCustomOpDomain(const char* domain, OrtCustomOpDomain** out) {
  MAY_FAIL;
  *out = new OrtCustomOpDomain{domain, {}};
  return nullptr;
}
void ReleaseCustomOpDomain(OrtCustomOpDomain* domain) { delete domain; }
OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  MAY_FAIL;
  domain->ops.push_back(op);
  return nullptr;
}
OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  MAY_FAIL;
  options->domains.push_back(domain);
  return nullptr;
}
OrtStatus* AddSessionConfigEntry(OrtSessionOptions* options, const char* key, const char* value) {
  MAY_FAIL;
  options->entries[key] = value;
  return nullptr;
}
OrtStatus* HasSessionConfigEntry(const OrtSessionOptions* options, const char* key, int* out) {
  MAY_FAIL;
  *out = options->entries.count(key) != 0;
  return nullptr;
}
OrtStatus* GetSessionConfigEntry(const OrtSessionOptions* options, const char* key, char* out, size_t* size) {
  MAY_FAIL;
  return copy_text(options->entries.at(key), out, size);
}

OrtStatus* GetTensorMutableData(OrtValue* value, void** out) {
  MAY_FAIL;
  *out = value->data;
  return nullptr;
}
OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  MAY_FAIL;
  ++alive;
  *out = new OrtTensorTypeAndShapeInfo(value->shape);
  return nullptr;
}
OrtStatus* CreateTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo** out) {
  MAY_FAIL;
  ++alive;
  *out = new OrtTensorTypeAndShapeInfo;
  return nullptr;
}
void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) {
  --alive;
  delete info;
}
OrtStatus* CastTypeInfoToTensorInfo(const OrtTypeInfo* type, const OrtTensorTypeAndShapeInfo** out) {
  MAY_FAIL;
  *out = type->shape;
  return nullptr;
}
void ReleaseTypeInfo(OrtTypeInfo* type) {
  --alive;
  delete type;
}
OrtStatus* SetTensorElementType(OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType type) {
  MAY_FAIL;
  info->type = type;
  return nullptr;
}
OrtStatus* SetDimensions(OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t rank) {
  MAY_FAIL;
  info->dims.assign(dims, dims + rank);
  return nullptr;
}
OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out) {
  MAY_FAIL;
  *out = info->type;
  return nullptr;
}
OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* out) {
  MAY_FAIL;
  *out = info->dims.size();
  return nullptr;
}
OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t rank) {
  MAY_FAIL;
  std::copy_n(info->dims.begin(), std::min(rank, info->dims.size()), dims);
  return nullptr;
}
OrtStatus* GetSymbolicDimensions(const OrtTensorTypeAndShapeInfo* info, const char** names, size_t rank) {
  MAY_FAIL;
  for (size_t i = 0; i < rank; ++i) names[i] = i < info->names.size() ? info->names[i].c_str() : nullptr;
  return nullptr;
}
OrtStatus* SetSymbolicDimensions(OrtTensorTypeAndShapeInfo* info, const char** names, size_t rank) {
  MAY_FAIL;
  info->names.assign(names, names + rank);
  return nullptr;
}

const OrtOpAttr* attribute(const OrtKernelInfo* info, const char* name, bool is_int) {
  const auto found = info->attributes.find(name);
  return found != info->attributes.end() && found->second.is_int == is_int ? &found->second : nullptr;
}
OrtStatus* KernelInfoGetAttribute_int64(const OrtKernelInfo* info, const char* name, int64_t* out) {
  MAY_FAIL;
  const OrtOpAttr* found = attribute(info, name, true);
  if (found == nullptr) return status(ORT_FAIL, "no such attribute");
  *out = found->number;
  return nullptr;
}
OrtStatus* KernelInfoGetAttribute_string(const OrtKernelInfo* info, const char* name, char* out, size_t* size) {
  MAY_FAIL;
  const OrtOpAttr* found = attribute(info, name, false);
  return found == nullptr ? status(ORT_FAIL, "no such attribute") : copy_text(found->text, out, size);
}
OrtStatus* KernelInfo_GetNodeName(const OrtKernelInfo* info, char* out, size_t* size) {
  MAY_FAIL;
  return copy_text(info->name, out, size);
}
OrtStatus* KernelInfo_GetOutputName(const OrtKernelInfo* info, size_t, char* out, size_t* size) {
  MAY_FAIL;
  return copy_text(info->output, out, size);
}
OrtStatus* KernelInfo_GetInputTypeInfo(const OrtKernelInfo* info, size_t index, OrtTypeInfo** out) {
  MAY_FAIL;
  ++alive;
  *out = new OrtTypeInfo{index < info->declared.size() ? &info->declared[index] : nullptr};
  return nullptr;
}
OrtStatus* KernelInfoGetConstantInput_tensor(const OrtKernelInfo* info, size_t index, int* constant,
                                             const OrtValue** out) {
  MAY_FAIL;
  *out = index < info->constants.size() ? info->constants[index] : nullptr;
  *constant = *out != nullptr;
  return nullptr;
}

void* allocate(OrtAllocator*, size_t bytes) {
  if (bytes > largest_block || (fail_in >= 0 && fail_in-- == 0)) return nullptr;
  ++alive;
  return std::malloc(bytes);
}
void release(OrtAllocator*, void* block) {
  --alive;
  std::free(block);
}
OrtStatus* KernelInfoGetAllocator(const OrtKernelInfo*, OrtMemType, OrtAllocator** out) {
  MAY_FAIL;
  ++alive;
  *out = new OrtAllocator{21, allocate, release};
  return nullptr;
}
void ReleaseAllocator(OrtAllocator* allocator) {
  --alive;
  delete allocator;
}

OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  MAY_FAIL;
  if (index >= context->inputs.size()) return status(ORT_INVALID_ARGUMENT, "no such input");
  *out = context->inputs[index];
  return nullptr;
}
OrtStatus* KernelContext_GetOutput(OrtKernelContext* context, size_t, const int64_t* dims, size_t rank, OrtValue** out) {
  MAY_FAIL;
  // The test knows the type: it set it before the run.
  if (!resize(context->output, context->output.shape.type, std::vector<int64_t>(dims, dims + rank))) {
    return status(ORT_FAIL, "no memory for the output");
  }
  *out = &context->output;
  return nullptr;
}
// Parts in the wrong order and on this thread: a kernel must not care.
OrtStatus* KernelContext_ParallelFor(const OrtKernelContext*, void (*task)(void*, size_t), size_t total, size_t,
                                     void* data) {
  MAY_FAIL;
  for (size_t part = total; part-- > 0;) task(data, part);
  return nullptr;
}

OrtStatus* ShapeInferContext_GetInputTypeShape(const OrtShapeInferContext* context, size_t index,
                                               OrtTensorTypeAndShapeInfo** out) {
  MAY_FAIL;
  *out = const_cast<OrtTensorTypeAndShapeInfo*>(&context->info->declared.at(index));
  return nullptr;
}
OrtStatus* ShapeInferContext_GetAttribute(const OrtShapeInferContext* context, const char* name,
                                          const OrtOpAttr** out) {
  MAY_FAIL;
  const auto found = context->info->attributes.find(name);
  if (found == context->info->attributes.end()) return status(ORT_FAIL, "no such attribute");
  *out = &found->second;
  return nullptr;
}
OrtStatus* ShapeInferContext_SetOutputTypeShape(const OrtShapeInferContext* context, size_t,
                                                const OrtTensorTypeAndShapeInfo* info) {
  MAY_FAIL;
  OrtShapeInferContext& target = const_cast<OrtShapeInferContext&>(*context);
  target.result = *info;
  target.has_result = true;
  return nullptr;
}
OrtStatus* ReadOpAttr(const OrtOpAttr* attribute, OrtOpAttrType, void* data, size_t size, size_t* out) {
  MAY_FAIL;
  if (!attribute->is_int || size < sizeof(int64_t)) return status(ORT_FAIL, "no integer");
  std::memcpy(data, &attribute->number, sizeof(int64_t));
  *out = sizeof(int64_t);
  return nullptr;
}

[[noreturn]] void undeclared() {
  std::fprintf(stderr, "the library called a function that slots.inc does not list\n");
  std::abort();
}

constexpr size_t kSlots = 300;
void* slots[kSlots];

const OrtApi* get_api(uint32_t version) {
  if (version > 21) return nullptr;
  std::fill(slots, slots + kSlots, reinterpret_cast<void*>(&undeclared));
#define BCQ_ORT_SLOT(position, Result, name, arguments) slots[position] = reinterpret_cast<void*>(&name);
#include "ort/slots.inc"
#undef BCQ_ORT_SLOT
  return reinterpret_cast<const OrtApi*>(slots);
}

const char* version() { return "1.21.0 (fake)"; }

}  // namespace

const OrtApiBase* base() {
  static const OrtApiBase only = {get_api, version};
  return &only;
}

const OrtApi* api() { return base()->GetApi(21); }

size_t element_bytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32: return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return 2;
    default: return 1;
  }
}

bool resize(OrtValue& value, ONNXTensorElementDataType type, std::vector<int64_t> dims, size_t most) {
  size_t bytes = element_bytes(type);
  for (const int64_t size : dims) {
    if (size < 0 || __builtin_mul_overflow(bytes, size_t(size), &bytes) || bytes > most) return false;
  }
  value.shape.type = type;
  value.shape.dims = std::move(dims);
  value.bytes = std::make_unique<uint8_t[]>(bytes);
  value.data = value.bytes.get();
  return true;
}

}  // namespace fake
