-- Purpose: candidates.sql where there is no decision and no twin of a holdout image: joins that find nothing would cost
--          as much time as the scan.
-- Inputs:  allowed (the pool's soft labels after --where).
-- Grain:   one row per image.
-- Parameters: $min_confidence.
select image_id, label, confidence, margin, entropy, top_classes, top_probs, tail, 'pseudo' as source
from allowed
where confidence > $min_confidence::FLOAT;
