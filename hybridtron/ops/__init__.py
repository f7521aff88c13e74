"""Operations of the mixers on tensors, each with a float64 reference; `dispatch` lists their implementations."""
