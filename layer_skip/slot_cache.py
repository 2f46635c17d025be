"""The simplest cache of rows at unequal positions, for passes that try out whether a decoder is right."""

from torch import Tensor

from layer_skip.span import Span


class SlotCache:
    """A slot per position, written and read whole."""

    def __init__(self, rows: int, n_layers: int, slots: int) -> None:
        self.slots = slots
        self._rows_in_all = rows
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    def open(self, span: Span, row: int | None = None) -> None:
        """Take up K/V at the span's positions, of one row or of all."""
        self._positions = span.positions
        self._rows = slice(None) if row is None else slice(row, row + 1)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        stored = self._layers[layer_idx]
        if stored is None:
            shapes = ((self._rows_in_all, x.shape[1], self.slots, x.shape[3]) for x in (key, value))
            keys, values = (key.new_zeros(shape) for shape in shapes)
            stored = self._layers[layer_idx] = (keys, values)
        keys, values = stored[0][self._rows], stored[1][self._rows]
        index = self._positions[:, None, :, None]
        keys.scatter_(2, index.expand_as(key), key)
        values.scatter_(2, index.expand_as(value), value)
        return keys, values

    def get_seq_length(self, *_: object) -> int:
        return int(self._positions[0, 0])
