-- Purpose: the most confident images of each class, exactly; ties go to the lower image_id.
-- Source:  Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020, section 3.2.
-- Inputs:  candidates.
-- Grain:   one row per image; the quota keeps the first of each class.
select image_id, label, confidence, confidence as score
from candidates;
