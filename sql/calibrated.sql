-- Purpose: the confidence of each soft label under a temperature: the top class's share when every probability p
--          becomes p^(1/T) and the sum is scaled to 1 again (Guo et al., "On calibration of modern neural networks", ICML
--          2017). For probabilities of a softmax that is softmax(logits / T).
-- Inputs:  uncalibrated (rows of the labels table: confidence, top_classes, top_probs, tail), stored_classes.
-- Grain:   one row per row of uncalibrated: its columns and `calibrated` FLOAT.
-- Parameters: $T, above 0; 1 leaves a distribution as it is.
--
-- The top class counts with `confidence`, which was never rounded, the others with their stored probabilities, and each of
-- the C - K classes that were cut with tail / (C - K). Computed in float64 and rounded once, to float32. Against the full
-- distribution two things are missing: how the tail was spread, and what rounding took of the other probabilities, at
-- most 1/64 of each. At T = 1 `calibrated` is `confidence` but for 0.002, what rounding and an import may leave the sum off 1.
select
    * exclude (cut),
    -- all divided by the top class's, so that a low temperature does not make every power 0
    (1 / (
        1
        + list_sum(list_transform([0.0::DOUBLE] || top_probs[2:], lambda p: pow(p / confidence::DOUBLE, 1 / $T::DOUBLE)))
        + cut * pow(tail / greatest(cut, 1) / confidence::DOUBLE, 1 / $T::DOUBLE)
    ))::FLOAT as calibrated
from (
    select *, (select count(*) from stored_classes) - len(top_classes) as cut
    from uncalibrated
);
