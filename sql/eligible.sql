-- Purpose: the images that the policy lets through, with types that do not depend on how it was written.
-- Inputs:  policy (image_id, label, confidence, score; weight, or else it is 1).
-- Grain:   one row per image.
select image_id::BIGINT as image_id, label::INT as label, confidence::FLOAT as confidence, score::FLOAT as score,
    /* weight */ 1::FLOAT as weight
from policy;
