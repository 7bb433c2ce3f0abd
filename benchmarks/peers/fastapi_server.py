"""A plain FastAPI handler: each request for itself, in the framework's threads."""

from typing import Annotated

import uvicorn
from engine import PORT, load_engine
from fastapi import FastAPI, File

app = FastAPI()
engine = load_engine()


@app.post("/predict")
def predict(image: Annotated[bytes, File()]) -> dict[str, str]:
    """Caption one photo."""
    return {"caption": engine.caption([engine.read(image)])[0]}


if __name__ == "__main__":
    uvicorn.run(app, port=PORT)
