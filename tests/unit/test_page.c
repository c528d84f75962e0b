/* What the server's page may not have: anything that it would have to fetch elsewhere, and any way
 * by which text of a model could become markup. tests/slow/page.sh drives it in a browser. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "runtime/page.h"

static void test_small_and_whole(void **state)
{
    (void)state;
    assert_int_equal(page_bytes, strlen(page_html));
    assert_true(page_bytes < 40000);
    assert_int_equal(strncmp(page_html, "<!doctype html>\n", 16), 0);
    assert_non_null(strstr(page_html, "\n</script>\n</body>\n</html>\n"));
}

static void test_nothing_from_elsewhere(void **state)
{
    (void)state;
    static const char *const never[] = {
        "src=", "@import", "url(", "https:", "//cdn", "localStorage", " onclick=", "style=\""};
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (strstr(page_html, never[i])) fail_msg("the page has %s", never[i]);
    /* the icon's name space is no address */
    const char *first = strstr(page_html, "http:");
    assert_non_null(first);
    assert_null(strstr(first + 1, "http:"));
}

static void test_text_stays_text(void **state)
{
    (void)state;
    static const char *const never[] = {"innerHTML", "outerHTML",      "insertAdjacentHTML",
                                        "eval(",     "document.write", "createContextualFragment",
                                        "srcdoc",    "DOMParser",      "new Function"};
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (strstr(page_html, never[i])) fail_msg("the page has %s", never[i]);
}

static void test_policy(void **state)
{
    (void)state;
    assert_non_null(strstr(page_policy, "default-src 'none'; "));
    static const char *const part[] = {"style-src 'sha256-", "script-src 'sha256-"};
    for (int i = 0; i < 2; i++) { /* 32 bytes in base64 */
        const char *hash = strstr(page_policy, part[i]);
        assert_non_null(hash);
        hash += strlen(part[i]);
        assert_int_equal(strcspn(hash, "="), 43);
        assert_int_equal(strncmp(hash + 43, "='; ", 4), 0);
    }
    assert_null(strstr(page_policy, "unsafe"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_and_whole),
        cmocka_unit_test(test_nothing_from_elsewhere),
        cmocka_unit_test(test_text_stays_text),
        cmocka_unit_test(test_policy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
