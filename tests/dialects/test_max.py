"""The dialect of IBM's Model Asset eXchange, asked as its documentation asks."""

import math

from support.fake import serving


async def test_a_photo_has_three_predictions():
    async with serving() as client:
        answer = await client.post("/model/predict", files={"image": ("a.jpg", b"a dog")})
    body = answer.json()
    assert body["status"] == "ok"
    assert [each["caption"] for each in body["predictions"]] == ["a dog", "a dog 1", "a dog 2"]
    assert [each["index"] for each in body["predictions"]] == ["0", "1", "2"]
    assert body["predictions"][0]["probability"] == math.exp(-1)


async def test_its_metadata_names_the_checkpoint():
    async with serving() as client:
        about = (await client.get("/model/metadata")).json()
    assert {"id", "name", "description", "type", "source", "license"} <= set(about)
    assert about["id"] == "tiny"


async def test_errors_are_in_its_shape():
    async with serving() as client:
        broken = await client.post("/model/predict", files={"image": ("a.jpg", b"broken")})
        assert broken.status_code == 400
        assert broken.json() == {"status": "error", "message": "Undecodable image: damaged"}
        missing = await client.get("/model/labels")
        assert (missing.status_code, missing.json()["status"]) == (404, "error")
