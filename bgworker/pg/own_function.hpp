// Own functions: the functions that the extension has made, which are its members.
// Others may make functions of the same names in mq's schema, with other parameters.
#pragma once

// In SQL: whether the row `p` of pg_proc is one.
#define MQ_IS_OWN_FUNCTION(p)                                                         \
  "EXISTS (SELECT FROM pg_catalog.pg_depend own"                                      \
  " JOIN pg_catalog.pg_extension e ON e.oid = own.refobjid AND e.extname = 'mq'"      \
  " WHERE own.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND own.objid = " p \
  ".oid AND own.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND own.deptype = 'e')"
