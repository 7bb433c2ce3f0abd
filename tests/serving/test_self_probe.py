"""The probe of our own, against sockets that answer, wait and refuse."""

import socket
import threading

from app.serving import self_probe
from app.serving.self_probe import SelfProbe


def test_it_tells_how_long_an_answer_took(monkeypatch):
    monkeypatch.setattr(self_probe, "_EVERY_S", 0.01)
    waits_s, told, gate = [], threading.Event(), threading.Event()

    def note(wait_s):
        waits_s.append(wait_s)
        told.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        with SelfProbe(listening, note):
            connection, _ = listening.accept()
            assert connection.recv(999).startswith(b"GET /livez HTTP/1.1\r\n")
            gate.wait(0.2)  # no answer meanwhile
            assert not waits_s
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            connection.close()
            assert told.wait(10)
    assert waits_s[0] >= 0.2


def test_an_answer_that_does_not_come_is_told_as_well(monkeypatch):
    monkeypatch.setattr(self_probe, "_EVERY_S", 0.01)
    monkeypatch.setattr(self_probe, "_TIMEOUT_S", 0.1)
    waits_s, told = [], threading.Event()

    def note(wait_s):
        waits_s.append(wait_s)
        told.set()

    with socket.create_server(("127.0.0.1", 0)) as listening, SelfProbe(listening, note):
        assert told.wait(10)
    assert waits_s[0] >= 0.1
