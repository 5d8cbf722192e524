"""Prints every message, enum and rpc of tritonclient's protocol as JSON: names, numbers and types."""

from __future__ import annotations

import json

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

found: dict[str, list[object]] = {}


def visit(prefix: str, message: descriptor_pb2.DescriptorProto) -> None:
    name = f"{prefix}.{message.name}"
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        found[f"{name}.{field.name}"] = [field.number, field.type, field.label, field.type_name, oneof]
    for enum in message.enum_type:
        for value in enum.value:
            found[f"{name}.{enum.name}.{value.name}"] = [value.number]
    for nested in message.nested_type:
        visit(name, nested)


for module in (model_config_pb2, service_pb2):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        visit(file.package, message)
    for enum in file.enum_type:
        for value in enum.value:
            found[f"{file.package}.{enum.name}.{value.name}"] = [value.number]
    for service in file.service:
        for method in service.method:
            found[f"{file.package}.{service.name}.{method.name}"] = [
                method.input_type,
                method.output_type,
                method.client_streaming,
                method.server_streaming,
            ]
print(json.dumps(found))
