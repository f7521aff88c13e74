"""What becomes of a function that cannot be recorded; tests/gpu/test_mad.py records some."""

import torch

from hybridtron.ops import cuda_graph


def test_what_cannot_be_recorded_is_tried_once_and_called_as_it_is(monkeypatch, caplog):
    tried, undone = [], []

    def fail_to_record(function, arguments, stream):
        tried.append(arguments)
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
        finally:  # as the end of torch.cuda.graph
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(cuda_graph, "_record", fail_to_record)
    recorder = cuda_graph.Recorder(undo=lambda: undone.append(len(tried)))
    for size in (3, 3, 2):
        (y,) = recorder.run(lambda x: (2 * x,), torch.ones(size))
        assert y.tolist() == [2.0] * size
        recorder.forget()
    assert len(tried) == 1
    assert undone == [1]
    expected = "not recorded as a CUDA graph: operation not permitted when stream is capturing"
    assert [record.getMessage() for record in caplog.records] == [expected]
