-- Purpose: only images that the teacher is sure of, the same threshold for every class.
-- Source:  Sohn et al., "FixMatch: simplifying semi-supervised learning with consistency and confidence", NeurIPS 2020.
-- Inputs:  candidates.
-- Grain:   one row per image; the quota keeps the first of each class.
-- Parameter: $threshold = 0.95 in 0 .. 1    lowest confidence
select image_id, label, confidence, confidence as score
from candidates
where confidence >= $threshold::FLOAT;
