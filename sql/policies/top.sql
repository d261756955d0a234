-- Purpose: the most confident images of each class, exactly; ties go to the lower image_id.
-- Source:  Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020, section 3.2.
-- Inputs:  candidates.
-- Grain:   one row per kept image; rank counts from 1 within the class.
-- Parameters: $per_class.
select image_id, label, confidence, source, rank
from (
    select
        image_id, label, confidence, source,
        row_number() over (partition by label order by confidence desc, image_id) as rank
    from candidates
)
where rank <= $per_class;
