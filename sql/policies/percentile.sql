-- Purpose: a curriculum: the most confident share of each class, a larger one each generation:
--          min(1, $step * (generation + 1)), rounded up to whole images.
-- Source:  Cascante-Bonilla et al., "Curriculum labeling: revisiting pseudo-labeling for semi-supervised learning",
--          AAAI 2021 (steps of 20 %); there the percentile is taken over all classes together.
-- Inputs:  candidates.
-- Grain:   one row per image; the quota keeps the first of each class.
-- Parameters: $generation.
-- Parameter: $step = 0.2 in 0 .. 1    share that each generation adds
select image_id, label, confidence, score
from (
    select
        image_id, label, confidence, confidence as score,
        row_number() over (partition by label order by confidence desc, image_id) as rank,
        count(*) over (partition by label) as images
    from candidates
)
-- rounded first, or 0.2 * 3 would be a little more than 0.6, and so one image too many
where rank <= ceil(round(least(1, $step * ($generation + 1)) * images, 6));
