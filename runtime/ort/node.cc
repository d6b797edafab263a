// SPDX-License-Identifier: Apache-2.0
#include "ort/node.h"

#include <cstring>

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

std::string read_string(const Calls& calls, const OrtKernelInfo* info, const char* name) {
  size_t size = 0;  // with the terminating zero
  if (!succeeded(calls, calls.KernelInfoGetAttribute_string(info, name, nullptr, &size))) {
    refuse_attribute(name, "string");
  }
  std::string text(size, '\0');
  if (!succeeded(calls, calls.KernelInfoGetAttribute_string(info, name, text.data(), &size))) {
    refuse_attribute(name, "string");
  }
  text.resize(size == 0 ? 0 : size - 1);
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
  size_t size = 0;
  std::string name;
  if (succeeded(calls, calls.KernelInfo_GetNodeName(info, nullptr, &size)) && size > 1) {
    name.resize(size);
    if (!succeeded(calls, calls.KernelInfo_GetNodeName(info, name.data(), &size))) name.clear();
    name.resize(name.empty() ? 0 : size - 1);
  }
  return name;
}

std::string node_title(const Calls& calls, const OrtKernelInfo* info, const char* op) {
  std::string name = node_name(calls, info);
  for (char& c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return std::string(op) + " '" + name.substr(0, 200) + "'";
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
