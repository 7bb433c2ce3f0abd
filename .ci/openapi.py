"""Write docs/openapi.json anew: the shape of the API, as clients may rely on it.

Run: make openapi
"""

import json
from pathlib import Path

from app.main import create_app
from app.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "openapi.json"


def main() -> None:
    """Write the file."""
    document = json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False)
    PAGE.write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
