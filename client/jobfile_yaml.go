package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/crowdcloud/crowd"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// What a file may hold at most, aliases counted as often as they are used.
const (
	maxYAMLNodes = 100_000
	maxYAMLKeys  = 10_000 // the parser takes the square of a map's keys
	maxYAMLDepth = 64
)

// readYAML reads one document of YAML 1.2, core schema (NO is text, 1_000 too), into what crowd.ParseSpec takes; numbers keep their
// spelling. It notes in m where things stand. With faults there is no tree. The text may be a stranger's: time and memory are bounded
// by its size, and nothing panics.
func readYAML(src []byte, m marks) (tree any, faults []crowd.Fault) {
	one := func(at place, hint, format string, args ...any) (any, []crowd.Fault) {
		m[""] = mark{value: at}
		return nil, []crowd.Fault{{Text: fmt.Sprintf(format, args...), Hint: hint}}
	}
	defer func() {
		if e := recover(); e != nil { // the parser is somebody else's
			tree, faults = one(place{1, 1}, "", "not YAML: %v", e)
		}
	}()
	text, bad := checkText(src)
	if bad != nil {
		return one(place{1, 1}, bad.Hint, "%s", bad.Text)
	}
	tokens := lexer.Tokenize(string(text))
	if t, why := tooMuch(tokens); t != nil {
		return one(placeOf(t), "", "%s", why)
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) && syntax.Token != nil {
			return one(placeOf(syntax.Token), syntaxHint(syntax, string(text)), "not YAML: %s", strings.TrimSpace(syntax.Message))
		}
		return one(place{1, 1}, "", "not YAML: %v", err)
	}
	var body ast.Node
	for _, doc := range file.Docs {
		if _, isDirective := doc.Body.(*ast.DirectiveNode); doc.Body == nil || isDirective {
			continue
		}
		if body != nil {
			return one(nodePlace(doc.Body), "a file each", "a second document")
		}
		body = doc.Body
	}
	if body == nil {
		return one(place{1, 1}, "crowd job init writes one", "the file is empty")
	}
	w := &walker{marks: m, anchors: map[string]ast.Node{}}
	tree = w.node(body, "", 0)
	if len(w.faults) > 0 {
		return nil, w.faults
	}
	return tree, nil
}

// tooMuch finds the token at which nesting gets deeper, or keys more, than is read, before anything recurses over them.
func tooMuch(tokens token.Tokens) (t *token.Token, why string) {
	flow, onLine, line, keys := 0, 0, 0, 0
	for _, t := range tokens {
		at := placeOf(t)
		if at.line != line {
			line, onLine = at.line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			onLine++
		case token.MappingValueType:
			keys++
		}
		switch {
		case flow > maxYAMLDepth || onLine > maxYAMLDepth:
			return t, fmt.Sprintf("nested deeper than %d levels", maxYAMLDepth)
		case keys > maxYAMLKeys:
			return t, fmt.Sprintf("more than %d keys", maxYAMLKeys)
		}
	}
	return nil, ""
}

func placeOf(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{1, 1}
	}
	return place{max(t.Position.Line, 1), max(t.Position.Column, 1)}
}

// nodePlace is where a node's text begins.
func nodePlace(n ast.Node) place {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return placeOf(n.Values[0].Key.GetToken())
		}
	case *ast.MappingValueNode:
		return placeOf(n.Key.GetToken())
	}
	return placeOf(n.GetToken())
}

// syntaxHint guesses what somebody did whom the parser didn't understand.
func syntaxHint(e *yaml.SyntaxError, text string) string {
	lines := strings.Split(text, "\n")
	line := ""
	if n := placeOf(e.Token).line; n <= len(lines) {
		line = lines[n-1]
	}
	switch {
	case strings.HasPrefix(strings.TrimLeft(line, " "), "\t") || strings.Contains(e.Message, "tab"):
		return "YAML indents with spaces, not tabs"
	case strings.ContainsAny(line, "@`%"):
		return "put the text in quotes"
	case strings.Contains(e.Message, "must be specified") || strings.Contains(e.Message, "could not find"):
		return "a quote or bracket isn't closed"
	}
	return "two spaces a level; text with : or # or { in quotes"
}

// walker turns nodes into a tree.
type walker struct {
	marks   marks
	anchors map[string]ast.Node
	faults  []crowd.Fault
	nodes   int
}

func (w *walker) fault(at string, where place, hint, format string, args ...any) {
	w.marks[at] = mark{key: where, value: where}
	w.faults = append(w.faults, crowd.Fault{Path: at, Text: fmt.Sprintf(format, args...), Hint: hint})
}

func (w *walker) node(n ast.Node, at string, depth int) any {
	w.nodes++
	if w.nodes > maxYAMLNodes || depth > maxYAMLDepth {
		if len(w.faults) == 0 || w.faults[len(w.faults)-1].Text != "too large" {
			w.fault(at, nodePlace(n), "", "too large")
		}
		w.nodes = maxYAMLNodes + 1
		return nil
	}
	if m, ok := w.marks[at]; !ok || m.value == (place{}) {
		m.value = nodePlace(n)
		w.marks[at] = m
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		return w.object(n.Values, at, depth)
	case *ast.MappingValueNode:
		return w.object([]*ast.MappingValueNode{n}, at, depth)
	case *ast.SequenceNode:
		list := make([]any, 0, len(n.Values))
		for i, v := range n.Values {
			if w.nodes > maxYAMLNodes {
				break
			}
			list = append(list, w.node(v, at+"["+strconv.Itoa(i)+"]", depth+1))
		}
		return list
	case *ast.AnchorNode:
		v := w.node(n.Value, at, depth+1)
		w.anchors[n.Name.GetToken().Value] = n.Value // from here on: no anchor holds itself
		return v
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		if target, ok := w.anchors[name]; ok {
			return w.node(target, at, depth+1)
		}
		w.fault(at, nodePlace(n), "", "no anchor &%s stands before", name)
		return nil
	case *ast.TagNode:
		if v, ok := n.Value.(ast.ScalarNode); ok && n.Start.Value == "!!str" {
			return scalarText(v)
		}
		w.fault(at, nodePlace(n), "without it", "the tag %s isn't taken", n.Start.Value)
		return nil
	case *ast.LiteralNode:
		return n.Value.Value
	case *ast.StringNode:
		if n.Token.Type == token.SingleQuoteType || n.Token.Type == token.DoubleQuoteType {
			return n.Value
		}
		return plainScalar(n.Value)
	case ast.ScalarNode:
		if n.GetToken().Type == token.ImplicitNullType {
			return nil
		}
		return plainScalar(n.GetToken().Value)
	}
	w.fault(at, nodePlace(n), "", "YAML that isn't taken here")
	return nil
}

func (w *walker) object(values []*ast.MappingValueNode, at string, depth int) any {
	tree, seen := crowd.Tree{}, map[string]bool{}
	for _, v := range values {
		if w.nodes > maxYAMLNodes {
			break
		}
		where := placeOf(v.Key.GetToken())
		key, ok := keyText(v.Key)
		path := key
		if at != "" {
			path = at + "." + key
		}
		switch {
		case !ok:
			w.fault(at, where, "", "a key must be a plain word")
			continue
		case seen[key]:
			w.fault(path, where, "", "it stands twice")
			continue
		}
		seen[key] = true
		w.marks[path] = mark{key: where}
		tree = append(tree, crowd.Pair{Key: key, Value: w.node(v.Value, path, depth+1)})
	}
	return tree
}

// keyText reads a key; << (merging) is of YAML 1.1 and no key here.
func keyText(n ast.MapKeyNode) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.MergeKeyNode, *ast.MappingKeyNode, *ast.NullNode:
		return "", false
	case ast.ScalarNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func scalarText(n ast.ScalarNode) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	}
	return n.GetToken().Value
}

var numberForm = regexp.MustCompile(`^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)$`)

// plainScalar is YAML 1.2's core schema for text without quotes. Infinities and not-a-numbers stay text.
func plainScalar(s string) any {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return nil
	case "true", "True", "TRUE":
		return true
	case "false", "False", "FALSE":
		return false
	}
	if numberForm.MatchString(s) {
		return json.Number(s)
	}
	return s
}
