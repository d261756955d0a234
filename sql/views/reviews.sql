-- Purpose: every decision that a person made, also those that a later one replaced.
-- Inputs:  stored_reviews (the table's files).
-- Grain:   one row per decision.
select image_id, generation::INT as generation, decision, new_label::INT as new_label, reviewer, reason, decided_at
from stored_reviews;
