\echo Use "CREATE EXTENSION mq" to load this file. \quit

-- The parts in this folder make one script, in the order of their numbers. Every function says how it finds
-- its objects: a body of the form RETURN or BEGIN ATOMIC is resolved when it is created, and the functions
-- in C switch to a search_path of their own. So no function depends on its caller's search_path.
