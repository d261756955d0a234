-- Purpose: the probability of the given label of each image, its self-confidence. A given label outside the kept classes
--          has the even share of the tail, the mean of what is possible.
-- Inputs:  judged (issues_held_out or issues_generations).
-- Grain:   one row per row of judged.
select *, coalesce(top_probs[list_position(top_classes, given)]::DOUBLE, share) as self_confidence
from judged;
