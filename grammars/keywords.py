"""Keywords about one type of value: from each to the function that lowers it.

Every function takes (lowering, the place of the schema, polarity). In the positive polarity the set holds values of all
other types as well, for a keyword says nothing of them; in the negative it holds none of them.
"""

from __future__ import annotations

from collections.abc import Callable

from specdec.grammars import array_keywords, object_keywords, scalar_keywords
from specdec.grammars.lowering import Lowering
from specdec.grammars.schema import Place
from specdec.grammars.values import ValueSet

LOWERINGS: dict[str, Callable[[Lowering, Place, bool], ValueSet]] = {
    "type": scalar_keywords.lower_type,
    "enum": scalar_keywords.lower_enum,
    "const": scalar_keywords.lower_const,
    # The order of these is the order of keys in the text: declared, then only required.
    "properties": object_keywords.lower_properties,
    "patternProperties": object_keywords.lower_pattern_properties,
    "additionalProperties": object_keywords.lower_additional_properties,
    "propertyNames": object_keywords.lower_property_names,
    "required": object_keywords.lower_required,
    "minProperties": object_keywords.lower_property_count("minProperties"),
    "maxProperties": object_keywords.lower_property_count("maxProperties"),
    "items": array_keywords.lower_items,
    "prefixItems": array_keywords.lower_prefix_alone,
    "contains": array_keywords.lower_contains,
    "uniqueItems": array_keywords.lower_unique_items,
    "minItems": array_keywords.lower_item_count("minItems"),
    "maxItems": array_keywords.lower_item_count("maxItems"),
    "minimum": scalar_keywords.lower_bound("minimum"),
    "maximum": scalar_keywords.lower_bound("maximum"),
    "exclusiveMinimum": scalar_keywords.lower_bound("exclusiveMinimum"),
    "exclusiveMaximum": scalar_keywords.lower_bound("exclusiveMaximum"),
    "multipleOf": scalar_keywords.lower_multiple_of,
    "minLength": scalar_keywords.lower_length("minLength"),
    "maxLength": scalar_keywords.lower_length("maxLength"),
    "pattern": scalar_keywords.lower_pattern,
    "format": scalar_keywords.lower_format,
}
"""Keywords neither here nor in APPLICATORS constrain nothing by themselves."""
