#include "compiler/cli.h"
#include "compiler/spec_doc.h"
#include <stdio.h>

static const char help[] =
    "usage: strata spec (--reference | --schema)\n\n"
    "Prints the documents made from the table of spec keys; specs/ has a copy of both.\n\n"
    "  strata spec --reference | less\n"
    "  strata spec --schema > strata.schema.json\n\n"
    "  --reference  every key: its type, default, range and meaning (Markdown)\n"
    "  --schema     JSON Schema, for completion in an editor\n";

int cmd_spec(int argc, char **argv)
{
    struct cli c = {0};
    bool reference = false, schema = false;
    cli_parse(&c, argc, argv, help, 0,
              CLI_OPTIONS({"reference", CLI_flag, &reference}, {"schema", CLI_flag, &schema}));
    cli_no_set(&c);
    if (reference == schema) cli_fail(RT_usage, "spec needs either --reference or --schema");
    struct sb s = {0};
    if (reference)
        spec_reference(&s);
    else
        spec_schema(&s);
    fwrite(s.p, 1, s.n, stdout);
    sb_free(&s);
    return 0;
}
