"""Definitions of tools, which a server shows the model, in the shapes in which apps record them."""

from __future__ import annotations

from babylon_tasks.records.parts import Message, NotReadable, from_json


def read_tools(value: object) -> list[Message]:
    """Return the definitions of tools that the model was shown, as OpenAI's API writes them.

    Raises:
        NotReadable: They are of an unknown shape.
    """
    if isinstance(value, str):
        value = from_json(value)
    if not value:
        return []
    if isinstance(value, dict):  # the AI SDK's, by name
        if not all(isinstance(tool, dict) for tool in value.values()):
            raise NotReadable("odd_shape")
        value = [{**tool, "name": name, "type": "function"} for name, tool in value.items()]
    if not isinstance(value, list):
        raise NotReadable("odd_shape")
    return [_read_tool(each) for each in value]


def _read_tool(tool: object) -> Message:
    if not isinstance(tool, dict):
        raise NotReadable("odd_shape")
    function = tool.get("function", tool)
    if tool.get("type", "function") not in ("function", "custom"):
        raise NotReadable("odd_shape")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise NotReadable("odd_shape")
    if function is not tool:
        return {"type": "function", "function": function}
    schemas = [tool[k] for k in ("parameters", "input_schema", "inputSchema") if k in tool]
    if len(schemas) != 1 or not isinstance(schemas[0], dict):
        raise NotReadable("odd_shape")
    schema = schemas[0].get("jsonSchema", schemas[0])
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise NotReadable("odd_shape")
    described = {"description": tool["description"]} if tool.get("description") else {}
    return {
        "type": "function",
        "function": {"name": tool["name"], **described, "parameters": schema},
    }
