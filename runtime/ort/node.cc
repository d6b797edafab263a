// SPDX-License-Identifier: Apache-2.0
#include "ort/node.h"

#include <cstring>

#include "core/shown.h"

namespace bcq::ort {
namespace {

// Frees the shape when the scope ends, also by an exception.
struct ShapeInfo {
  const Calls& calls;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ~ShapeInfo() {
    if (info != nullptr) calls.ReleaseTensorTypeAndShapeInfo(info);
  }
};

struct TypeInfo {
  const Calls& calls;
  OrtTypeInfo* info = nullptr;
  ~TypeInfo() {
    if (info != nullptr) calls.ReleaseTypeInfo(info);
  }
};

// True, or false after the status has been thrown away.
bool succeeded(const Calls& calls, OrtStatus* status) {
  if (status == nullptr) return true;
  calls.ReleaseStatus(status);
  return false;
}

[[noreturn]] void refuse_attribute(const char* name, const char* type) {
  throw Refusal{"attribute " + std::string(name) + ": got none of type " + type + ", expected one. " +
                "The file is damaged or was not made by this project: export the model again."};
}

int64_t read_int(const Calls& calls, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  if (!succeeded(calls, calls.KernelInfoGetAttribute_int64(info, name, &value))) refuse_attribute(name, "int");
  return value;
}

// ONNX Runtime gives a text in two steps, its size with the terminating zero and its bytes. False and an empty text
// when it refuses either.
template <typename Get>
bool read_text(const Get& get, const Calls& calls, std::string& text) {
  size_t size = 0;
  text.clear();
  if (!succeeded(calls, get(nullptr, &size)) || size == 0) return false;
  text.resize(size);
  const bool read = succeeded(calls, get(text.data(), &size));
  text.resize(read ? size - 1 : 0);
  return read;
}

std::string read_string(const Calls& calls, const OrtKernelInfo* info, const char* name) {
  std::string text;
  const auto get = [&](char* out, size_t* size) { return calls.KernelInfoGetAttribute_string(info, name, out, size); };
  if (!read_text(get, calls, text)) refuse_attribute(name, "string");
  return text;
}

// Where the attribute `name` is kept; null for a name that this source does not know.
int64_t* int_field(Attributes& a, const char* name) {
  const struct {
    const char* name;
    int64_t* field;
  } fields[] = {{"format_version", &a.format_version}, {"bits", &a.bits},
                {"K", &a.K},                           {"N", &a.N},
                {"group_size", &a.group_size},         {"accuracy_level", &a.accuracy_level}};
  for (const auto& entry : fields) {
    if (std::strcmp(entry.name, name) == 0) return entry.field;
  }
  return nullptr;
}

std::string* string_field(Attributes& a, const char* name) {
  if (std::strcmp(name, "layout") == 0) return &a.layout;
  return std::strcmp(name, "code_hash") == 0 ? &a.code_hash : nullptr;
}

}  // namespace

void check(const Calls& calls, OrtStatus* status) {
  if (status == nullptr) return;
  std::string message = calls.GetErrorMessage(status);
  calls.ReleaseStatus(status);
  throw Refusal{std::move(message)};
}

Tensor::Tensor(const Calls& calls, const OrtValue* value) {
  ShapeInfo shape{calls};
  check(calls, calls.GetTensorTypeAndShape(value, &shape.info));
  check(calls, calls.GetTensorElementType(shape.info, &type_));
  check(calls, calls.GetDimensionsCount(shape.info, &rank_));
  if (rank_ > kMaxRank) {
    throw Refusal{"shape: got rank " + std::to_string(rank_) + ", expected at most " + std::to_string(kMaxRank) +
                  ". Reshape the tensor."};
  }
  check(calls, calls.GetDimensions(shape.info, dims_, rank_));
  void* data = nullptr;
  check(calls, calls.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  data_ = data;
}

std::string node_name(const Calls& calls, const OrtKernelInfo* info) {
  std::string name;
  read_text([&](char* out, size_t* size) { return calls.KernelInfo_GetNodeName(info, out, size); }, calls, name);
  if (!name.empty()) return name;
  // A node need not have a name; the name of its output is as unique.
  read_text([&](char* out, size_t* size) { return calls.KernelInfo_GetOutputName(info, 0, out, size); }, calls, name);
  return name;
}

std::string node_title(const Calls& calls, const OrtKernelInfo* info, const char* op) {
  return std::string(op) + " '" + shown(node_name(calls, info)) + "'";
}

Attributes read_attributes(const Calls& calls, const OrtKernelInfo* info, const contract::Op& op) {
  Attributes attributes;
  for (size_t i = 0; i < op.attribute_count; ++i) {
    const contract::Attribute& declared = op.attributes[i];
    if (int64_t* number = int_field(attributes, declared.name)) *number = read_int(calls, info, declared.name);
    else if (std::string* text = string_field(attributes, declared.name)) *text = read_string(calls, info, declared.name);
    else throw Refusal{"attribute " + std::string(declared.name) + ": declared but not known to this library."};
  }
  return attributes;
}

bool constant_input(const Calls& calls, const OrtKernelInfo* info, size_t index, Tensor& out) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(calls, calls.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return false;
  out = Tensor(calls, value);
  return true;
}

void check_fed(const char* name, const Tensor& tensor, ONNXTensorElementDataType expected, size_t element) {
  if (tensor.type() != expected) {
    throw Refusal{std::string(name) + " type: got ONNX element type " + std::to_string(int(tensor.type())) +
                  ", expected " + std::to_string(int(expected)) + ". Feed the type that the model declares."};
  }
  const size_t beyond = reinterpret_cast<uintptr_t>(tensor.data<void>()) % element;
  if (beyond != 0 && !tensor.is_empty()) {
    throw Refusal{std::string(name) + " address: got " + std::to_string(beyond) + " bytes beyond a multiple of " +
                  std::to_string(element) + ", expected none. Feed an aligned tensor."};
  }
}

int64_t declared_last_dimension(const Calls& calls, const OrtKernelInfo* info, size_t index) {
  TypeInfo type{calls};
  if (!succeeded(calls, calls.KernelInfo_GetInputTypeInfo(info, index, &type.info))) return -1;
  const OrtTensorTypeAndShapeInfo* shape = nullptr;  // belongs to `type`
  check(calls, calls.CastTypeInfoToTensorInfo(type.info, &shape));
  size_t rank = 0;
  if (shape != nullptr) check(calls, calls.GetDimensionsCount(shape, &rank));
  if (rank == 0 || rank > Tensor::kMaxRank) return -1;
  int64_t dims[Tensor::kMaxRank];
  check(calls, calls.GetDimensions(shape, dims, rank));
  return dims[rank - 1];
}

}  // namespace bcq::ort
