"""Write json_schemas.json: the schemas of the JSON-Schema-Test-Suite, with what is valid under each and what is not.

    pip download --no-deps --no-binary :all: jsonschema==4.26.0
    tar xzf jsonschema-4.26.0.tar.gz
    python tests/data/make_json_schemas.py jsonschema-4.26.0/json/tests/draft2020-12

The suite is Copyright (c) 2012 Julian Berman, under the MIT licence (https://github.com/json-schema-org/JSON-Schema-Test-Suite).
Each entry is [file, description, schema, [[instance, valid], ...]].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Read the suite's files of one draft, and write what is in them on a line each."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            schema = case["schema"]
            if isinstance(schema, dict):
                schema.pop("$schema", None)  # the same in all
            tests = [[test["data"], test["valid"]] for test in case["tests"]]
            lines.append(json.dumps([path.stem, case["description"], schema, tests], separators=(",", ":")))
    target = Path(__file__).with_name("json_schemas.json")
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
