-- Purpose: equal shares over confidence: the range from the threshold to 1 is cut into $bins bins of one width, and a
--          class takes one image of each bin in turn until the quota is full. Inside a bin the order is drawn. What
--          --calibrated or --accepted let in from below the threshold is in the first bin.
-- Source:  Stratified sampling with equal allocation, e.g. Cochran, "Sampling techniques", 1977, chapter 5. For studies
--          of which confidences help; study 4 of Xie et al. (CVPR 2020) samples by bin of confidence.
-- Inputs:  candidates.
-- Grain:   one row per image; the quota keeps the first of each class. The score is minus the turn.
-- Parameters: $min_confidence, $seed.
-- Parameter: $bins = 10 in 1 .. 1000    number of bins
select image_id, label, confidence, -turn as score
from (
    select
        image_id, label, confidence,
        row_number() over (
            partition by
                label,
                greatest(0, least(floor((confidence - $min_confidence) / (1 - $min_confidence) * $bins), $bins - 1))
            order by md5_number_lower(image_id || '/' || $seed), image_id
        ) as turn
    from candidates
);
